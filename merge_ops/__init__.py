"""Merge LoRAs exactly, quickly and repeatably."""

from typing import TYPE_CHECKING

from .errors import IncompatibleLoraError, LoraFormatError, MergeError, ParameterError, UnknownMethodError
from .lazy import import_when_used
from .version import __version__

if TYPE_CHECKING:
    from .blocks import BlockStrengths
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

import_when_used(
    __name__,
    {
        "blocks": ("BlockStrengths",),
        "extracting": ("Extracted", "extract"),
        "formats": ("load", "load_all"),
        "lora": ("Lora", "LowRank"),
        "merging.merge": ("merge",),
        "merging.merged": ("Merged",),
        "merging.rank_rule": ("RankRule",),
        "merging.recency": ("recency_weights",),
        "methods.peft_names": ("COMBINATION_TYPES",),
        "methods.registry": ("METHODS", "Method", "Param", "merge_method"),
        "recipes": ("Recipe", "find_sources", "read_recipe"),
        "saving": ("FORMATS", "SaveReport", "save"),
    },
)
