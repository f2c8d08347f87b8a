"""Files to LoRAs and back: key grammar, adapter kinds, metadata."""

from .converted import alike_by_diffusers, load
from .read import from_tensors
from .save import SaveReport, save
from .write import FORMATS

__all__ = ["FORMATS", "SaveReport", "alike_by_diffusers", "from_tensors", "load", "save"]
