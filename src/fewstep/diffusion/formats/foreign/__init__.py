"""Imports checkpoint files of other code bases without running their code, and has the networks that diffusers lacks."""
