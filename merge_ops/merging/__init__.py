"""From LoRAs to one merge: aligned layer by layer, merged in one of two spaces, low rank where possible."""

from typing import TYPE_CHECKING

from ..lazy import import_when_used

if TYPE_CHECKING:
    from .merge import merge
    from .merged import Merged

__all__ = ["Merged", "merge"]

import_when_used(
    __name__,
    {
        "merge": ("merge",),
        "merged": ("Merged",),
    },
)
