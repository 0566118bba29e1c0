"""Measures what was gained and lost, with intervals."""
