"""Adding a merge to the weights of a model: diffusers, transformers, and model folders on disk."""

from .fusing import FuseReport, fuse

__all__ = ["FuseReport", "fuse"]
