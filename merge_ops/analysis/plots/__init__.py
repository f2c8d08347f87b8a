"""Pictures of a study. They need Pillow, which ComfyUI includes; import this package where it is used."""

from typing import TYPE_CHECKING

from ...lazy import import_when_used

if TYPE_CHECKING:
    from .page import THEMES
    from .views import draw

__all__ = ["THEMES", "draw"]

import_when_used(__name__, {"page": ("THEMES",), "views": ("draw",)})
