"""Merge LoRAs exactly, quickly and repeatably."""

from .blocks import BlockStrengths
from .errors import IncompatibleLoraError, LoraFormatError, MergeError, ParameterError, UnknownMethodError
from .extracting import Extracted, extract
from .formats import load, load_all
from .lora import Lora, LowRank
from .merging.merge import merge
from .merging.merged import Merged
from .merging.rank_rule import RankRule
from .merging.recency import recency_weights
from .methods.peft_names import COMBINATION_TYPES
from .methods.registry import METHODS, Method, Param, merge_method
from .recipes import Recipe, find_sources, read_recipe
from .saving import FORMATS, SaveReport, save
from .version import __version__

__all__ = [
    "COMBINATION_TYPES",
    "FORMATS",
    "METHODS",
    "BlockStrengths",
    "Extracted",
    "IncompatibleLoraError",
    "Lora",
    "LoraFormatError",
    "LowRank",
    "MergeError",
    "Merged",
    "Method",
    "Param",
    "ParameterError",
    "RankRule",
    "Recipe",
    "SaveReport",
    "UnknownMethodError",
    "__version__",
    "extract",
    "find_sources",
    "load",
    "load_all",
    "merge",
    "merge_method",
    "read_recipe",
    "recency_weights",
    "save",
]
