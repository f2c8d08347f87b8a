"""Recipes: the sources and settings of a merge, to be written, read, imported and run again."""

from .recipe import Recipe, recipe_of
from .source import Source
from .sources import find_sources, read_recipe

__all__ = ["Recipe", "Source", "find_sources", "read_recipe", "recipe_of"]
