"""Files to LoRAs and back: key grammar, adapter kinds, metadata."""

from .read import from_tensors, load
from .save import SaveReport, save
from .write import FORMATS

__all__ = ["FORMATS", "SaveReport", "from_tensors", "load", "save"]
