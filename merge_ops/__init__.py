"""Merge LoRAs exactly, quickly and repeatably."""

from .combination import COMBINATION_TYPES
from .errors import (
    IncompatibleLoraError,
    LoraFormatError,
    MergeError,
    ParameterError,
    UnknownMethodError,
)
from .formats import FORMATS, SaveReport, load, save
from .merge import merge
from .merged import Merged
from .registry import METHODS, Method, Param, merge_method
from .types import Lora, LowRank
from .version import __version__

__all__ = [
    "COMBINATION_TYPES",
    "FORMATS",
    "METHODS",
    "IncompatibleLoraError",
    "Lora",
    "LoraFormatError",
    "LowRank",
    "MergeError",
    "Merged",
    "Method",
    "Param",
    "ParameterError",
    "SaveReport",
    "UnknownMethodError",
    "__version__",
    "load",
    "merge",
    "merge_method",
    "save",
]
