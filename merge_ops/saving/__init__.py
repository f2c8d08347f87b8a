"""Saving a merge as a file that other tools load, read back and compared before it gets its final name."""

from typing import TYPE_CHECKING

from ..lazy import import_when_used

if TYPE_CHECKING:
    from .by_need import SizeLine, SizePlan, plan_sizes
    from .file_names import FORMATS
    from .save import SaveReport, check_output, save

__all__ = ["FORMATS", "SaveReport", "SizeLine", "SizePlan", "check_output", "plan_sizes", "save"]

import_when_used(
    __name__,
    {
        "by_need": ("SizeLine", "SizePlan", "plan_sizes"),
        "save": ("SaveReport", "check_output", "save"),
        "file_names": ("FORMATS",),
    },
)
