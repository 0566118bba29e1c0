"""Diffusion models of images, latents, video and sound."""
