"""Merge LoRAs exactly, quickly and repeatably."""

from .blocks import BlockStrengths
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
from .recipes import Recipe, find_sources, read_recipe
from .registry import METHODS, Method, Param, merge_method
from .types import Lora, LowRank
from .version import __version__

__all__ = [
    "COMBINATION_TYPES",
    "FORMATS",
    "METHODS",
    "BlockStrengths",
    "IncompatibleLoraError",
    "Lora",
    "LoraFormatError",
    "LowRank",
    "MergeError",
    "Merged",
    "Method",
    "Param",
    "ParameterError",
    "Recipe",
    "SaveReport",
    "UnknownMethodError",
    "__version__",
    "find_sources",
    "load",
    "merge",
    "merge_method",
    "read_recipe",
    "save",
]
