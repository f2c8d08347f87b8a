"""Extracting a LoRA: the difference of two models of one architecture, layer by layer, at a low rank."""

from typing import TYPE_CHECKING

from ..lazy import import_when_used

if TYPE_CHECKING:
    from .extract import extract
    from .extracted import Extracted
    from .found import Found
    from .options import ExtractOptions

__all__ = ["ExtractOptions", "Extracted", "Found", "extract"]

import_when_used(
    __name__,
    {
        "extract": ("extract",),
        "extracted": ("Extracted",),
        "found": ("Found",),
        "options": ("ExtractOptions",),
    },
)
