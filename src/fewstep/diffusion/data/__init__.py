"""Training data: images, latents and sampling paths, in memory or on disk, and the rows of a training."""

from .examples import Samples, Source
from .images import Images, Paths
from .load import load_images
from .making import make_table
from .npz import save_images
from .rows import Batch, Rows
from .table import Table

__all__ = ["Batch", "Images", "Paths", "Rows", "Samples", "Source", "Table", "load_images", "make_table", "save_images"]
