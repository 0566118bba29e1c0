"""Anything continuous: images, latents, audio."""
