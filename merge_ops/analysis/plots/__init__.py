"""Pictures of what ``inspect`` finds. Needs Pillow, which ComfyUI brings; import it where it is used."""

from .views import draw

__all__ = ["draw"]
