"""Recipes: the sources and settings of a merge, to be written, read, imported and run again."""

from typing import TYPE_CHECKING

from ..lazy import import_when_used

if TYPE_CHECKING:
    from .recipe import Recipe, recipe_of
    from .source import Source
    from .sources import find_sources, read_recipe

__all__ = ["Recipe", "Source", "find_sources", "read_recipe", "recipe_of"]

import_when_used(
    __name__,
    {
        "recipe": ("Recipe", "recipe_of"),
        "source": ("Source",),
        "sources": ("find_sources", "read_recipe"),
    },
)
