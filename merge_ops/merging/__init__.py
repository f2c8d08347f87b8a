"""From LoRAs to one merge: aligned layer by layer, merged in one of two spaces, low rank where possible."""

from .layers import Progress
from .merge import merge
from .merged import Merged

__all__ = ["Merged", "Progress", "merge"]
