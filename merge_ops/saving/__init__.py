"""Saving a merge as a file that other tools load, read back and compared before it gets its final name."""

from .by_need import SizeLine, SizePlan, plan_sizes
from .save import SaveReport, check_output, save
from .tensors import FORMATS

__all__ = ["FORMATS", "SaveReport", "SizeLine", "SizePlan", "check_output", "plan_sizes", "save"]
