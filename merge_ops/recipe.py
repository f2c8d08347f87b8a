"""The recipe of a merge: what it was made from and how, small enough for a file's metadata."""

from __future__ import annotations

from typing import Any

from .merged import Merged
from .version import __version__

RECIPE_VERSION = 1


def recipe_of(merged: Merged, rank: int | None = None) -> dict[str, Any]:
    """Sources by name and SHA-256 with their weights, and every setting. Holds no path.

    ``rank`` is the rank asked for when saving; that of the merge wins where both are given.
    """
    recipe = merged.recipe
    how: dict[str, Any] = (
        {"method": recipe.method.name, "space": recipe.space, "rank": recipe.rank or rank}
        if merged.combination_type is None
        else {
            "combination_type": merged.combination_type,
            "svd_rank": recipe.rank,
            "svd_clamp": recipe.svd_clamp,
        }
    )
    return {
        "recipe": RECIPE_VERSION,
        "version": __version__,
        "sources": [
            {"name": lora.name, "sha256": lora.sha256, "weight": weight}
            | ({} if text_weight == weight else {"text_weight": text_weight})
            for lora, weight, text_weight in zip(
                merged.loras, merged.weights, merged.text_weights, strict=True
            )
        ],
        **how,
        "params": recipe.params,
        "scale": recipe.scale,
        "seed": recipe.seed,
    }
