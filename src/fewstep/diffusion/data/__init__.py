"""What a model learns from: images, latents and paths, wherever they are kept, and the rows of a training."""

from .images import Images, Paths
from .load import load_images
from .npz import save_images
from .rows import Batch, Rows

__all__ = ["Batch", "Images", "Paths", "Rows", "load_images", "save_images"]
