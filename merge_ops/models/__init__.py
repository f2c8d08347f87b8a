"""Adding a merge to the weights of a model: diffusers, transformers, and model folders on disk."""

from typing import TYPE_CHECKING

from ..lazy import import_when_used

if TYPE_CHECKING:
    from .fusing import FuseReport, fuse

__all__ = ["FuseReport", "fuse"]

import_when_used(
    __name__,
    {
        "fusing": ("FuseReport", "fuse"),
    },
)
