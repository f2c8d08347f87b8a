"""Saving a merge as a file that other tools load, read back and compared before it gets its final name."""

from .save import SaveReport, check_output, save
from .tensors import FORMATS

__all__ = ["FORMATS", "SaveReport", "check_output", "save"]
