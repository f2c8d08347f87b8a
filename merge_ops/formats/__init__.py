"""Files to LoRAs and back: key grammar, adapter kinds, metadata."""

from .read import load
from .save import SaveReport, save
from .write import FORMATS

__all__ = ["FORMATS", "SaveReport", "load", "save"]
