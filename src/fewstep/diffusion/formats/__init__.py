"""Reads checkpoints without running their code, and writes stock pipelines."""
