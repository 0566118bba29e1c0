"""Checkpoints in without running their code, stock pipelines out, states that survive a crash."""
