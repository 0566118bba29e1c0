"""Masked diffusion language models: decode them, and stop as soon as they know."""
