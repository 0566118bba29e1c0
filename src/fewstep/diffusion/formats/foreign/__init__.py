"""Checkpoint files of other code bases: read without their code, and networks of ours where diffusers has none."""
