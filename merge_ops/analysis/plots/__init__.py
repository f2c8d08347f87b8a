"""Pictures of a study. They need Pillow, which ComfyUI includes; import this package where it is used."""

from .page import THEMES
from .views import draw

__all__ = ["THEMES", "draw"]
