"""Pictures of a study. They need Pillow, which ComfyUI includes; import this package where it is used."""

from .views import draw

__all__ = ["draw"]
