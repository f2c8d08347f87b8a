"""Extracting a LoRA: the difference of two models of one architecture, layer by layer, at a low rank."""

from .extract import extract
from .extracted import Extracted
from .found import Found
from .options import ExtractOptions

__all__ = ["ExtractOptions", "Extracted", "Found", "extract"]
