"""A recipe as rows of the list and values of widgets. Needs no ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...merge_ops.errors import ParameterError
from ...merge_ops.recipes import Recipe, Source
from .keywords import PEFT_OPTION
from .lora_text import MAX_STRENGTH, LoraRow, format_rows, parse_rows

_MAX_RANK = 4096  # of the widgets
_MAX_SEED = 2**53


def rows_of(recipe: Recipe, names: Sequence[str]) -> tuple[str, list[str]]:
    """Return the sources as a list, under the names of their files, and sentences on what it cannot hold."""
    lines, left_out = [], []
    for source, name in zip(recipe.sources, names, strict=True):
        row = LoraRow(
            name,
            _within(source.weight),
            None if source.text_weight is None else _within(source.text_weight),
            blocks=source.blocks or "",
        )
        line = format_rows([row])
        if not _is_read_back(line, row):
            left_out.append(f"{source.name} is left out: a list cannot hold its name or its block strengths")
            continue
        lines.append(line)
        left_out += _of_source(source)
    return "\n".join(lines), left_out


def widgets_of(recipe: Recipe) -> dict[str, Any]:
    """Return the values of a merge node's widgets: the method and its parameters, and the expert settings."""
    if recipe.combination_type is None:
        values: dict[str, Any] = {"method": recipe.method, "space": recipe.space}
        values["rank"] = min(recipe.rank or 0, _MAX_RANK)
    else:
        peft = {"combination_type": recipe.combination_type, "svd_rank": min(recipe.svd_rank or 0, _MAX_RANK)}
        values = {"method": PEFT_OPTION, "space": "delta", "rank": 0}
        values |= {f"method.{key}": value for key, value in peft.items()}
        values["method.svd_clamp"] = recipe.svd_clamp or 0.0
    values |= {f"method.{key}": value for key, value in recipe.params.items()}
    return values | {"seed": min(max(recipe.seed, 0), _MAX_SEED), "strength": _within(recipe.scale)}


def list_lost(recipe: Recipe) -> list[str]:
    """Return sentences on what the widgets of a node cannot hold of a recipe."""
    lost = []
    if recipe.learned is not None:
        lost.append("this merge was distilled: record and distill its sources again to get the same result")
    if recipe.extracted is not None:
        lost.append("this LoRA was extracted from two models: extract it again with Extract LoRA")
    if recipe.combination_type is not None and recipe.rank is not None:
        lost.append(f"the result was cut to rank {recipe.rank}; set this rank in Save LoRA")
    if recipe.ranks is not None:
        lost.append(f"the ranks were chosen by {recipe.ranks}, which a merge node does not do")
    if max(recipe.rank or 0, recipe.svd_rank or 0) > _MAX_RANK:
        lost.append(f"the rank of the recipe is above {_MAX_RANK}")
    if not 0 <= recipe.seed <= _MAX_SEED:
        lost.append(f"the seed {str(recipe.seed)[:20]} is not one of a node")
    if abs(recipe.scale) > MAX_STRENGTH:
        lost.append(f"the strength {recipe.scale:g} of the merge is outside [-100, 100]")
    if recipe.keep is not None:
        lost.append(f"where whole weights differ, those of {recipe.keep} were kept; a node refuses to choose")
    if recipe.reader != "peft":
        lost.append(f"the files were read as {recipe.reader} reads them")
    return [*lost, *recipe.warnings]


def _of_source(source: Source) -> list[str]:
    said = []
    if source.adapter is not None:
        said.append(f"of {source.name}, only the adapter {source.adapter} was merged")
    for what, value in (("strength", source.weight), ("CLIP strength", source.text_weight)):
        if value is not None and abs(value) > MAX_STRENGTH:
            said.append(f"the {what} {value:g} of {source.name} is outside [-100, 100]")
    return said


def _within(value: float) -> float:
    return min(max(value, -MAX_STRENGTH), MAX_STRENGTH)


def _is_read_back(line: str, row: LoraRow) -> bool:
    """False where the name or the blocks hold what ends a tag, or what reads as a strength."""
    try:
        found = parse_rows(line)
    except ParameterError:
        return False
    return [(each.lora_name, each.blocks) for each in found] == [(row.lora_name, row.blocks)]
