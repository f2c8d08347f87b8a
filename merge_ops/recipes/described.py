"""A recipe in words: what was merged, at which strengths, and how."""

from __future__ import annotations

from ..errors import shown
from .recipe import Recipe
from .source import Source


def describe_how(recipe: Recipe) -> str:
    """Return method, number of sources, parameters, rank, scale and seed in one line.

    >>> describe_how(merge_ops.read_recipe("both.safetensors"))
    'linear of 2 LoRAs'
    """
    count = len(recipe.sources)
    name = recipe.method or f"PEFT's {recipe.combination_type}"
    parts = [f"{name} of {count} LoRA{'s' * (count != 1)}"]
    parts += [f"{key} {_plain(value)}" for key, value in recipe.params.items()]
    parts += [f"svd_rank {recipe.svd_rank}"] if recipe.svd_rank is not None else []
    parts += [f"svd_clamp {recipe.svd_clamp:g}"] if recipe.svd_clamp is not None else []
    parts += [f"space {recipe.space}"] if recipe.space != "delta" else []
    parts += [f"rank {recipe.rank}"] if recipe.rank is not None else []
    parts += [f"ranks by {recipe.ranks}"] if recipe.ranks is not None else []
    parts += [f"strength {recipe.scale:g}"] if recipe.scale != 1 else []
    parts += [f"seed {recipe.seed}"] if recipe.seed else []
    parts += [f"only {recipe.keep}"] if recipe.keep is not None else []
    if recipe.learned is not None:
        parts.append("then distilled")
    if recipe.extracted is not None:
        parts[0] = f"extracted from {count} model{'s' * (count != 1)} and a base"
    return ", ".join(parts)


def describe_source(source: Source) -> str:
    """Return the name of a source and its strengths in one line."""
    parts = [f"{source.name} at {source.weight:g}"]
    if source.text_weight is not None:
        parts.append(f"text encoder {source.text_weight:g}")
    if source.blocks is not None:
        parts.append(f"blocks {source.blocks}")
    if source.adapter is not None:
        parts.append(f"adapter {shown(source.adapter)}")
    return ", ".join(parts)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
