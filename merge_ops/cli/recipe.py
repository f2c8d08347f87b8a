"""``lora-alloy recipe``: show how a file was merged, and run the merge again."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..merging.rank_rule import RankRule
from ..recipes.recipe_file import recipe_file
from .merge import finish
from .options import (
    Commands,
    add_base,
    add_command,
    add_output,
    print_json,
    progress_bar,
    refuse_output,
    require_output,
    say,
    table,
)
from .ranks import add_ranks, measure_sizes, rank_of

if TYPE_CHECKING:
    from ..recipes import Recipe

_EXAMPLES = """examples:
  lora-alloy recipe show both.safetensors
  lora-alloy recipe run both.safetensors --folder loras more_loras -o again.safetensors
  lora-alloy recipe run merge.yaml --folder loras --rank 32 -o merged.safetensors
  lora-alloy recipe run lorax.json --folder adapters --format peft -o merged_adapter
"""
_FILE = "a saved LoRA or PEFT folder, or a recipe as .json or .yaml (ours, LoRAX's or mergekit's)"


def add_parser(commands: Commands[argparse.ArgumentParser], _argv: list[str]) -> None:
    """Add the command with its two subcommands."""
    parser = add_command(
        commands,
        "recipe",
        "show the recipe of a merge, or run it again",
        "Show the sources and settings of a merged file, or merge its sources again.",
        _EXAMPLES,
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="show|run")
    shows = parts.add_parser("show", help="show sources, weights and settings")
    shows.add_argument("recipe", metavar="FILE", help=_FILE)
    shows.add_argument("--json", action="store_true", help="print as JSON, which 'recipe run' accepts")
    shows.set_defaults(run=show, parser=shows)
    runs = parts.add_parser("run", help="find the sources and merge them again")
    runs.add_argument("recipe", metavar="FILE", help=_FILE)
    runs.add_argument(
        "--folder", nargs="+", action="extend", metavar="DIR",
        help="folders to search for the sources, with subfolders (default: the folder of FILE); sources are "
        "found by SHA-256, then by name",
    )  # fmt: skip
    runs.add_argument(
        "--rank", type=int, help="truncate the result to this rank (default: the rank of the recipe)"
    )
    add_base(runs)
    add_ranks(runs)
    add_output(runs)
    runs.set_defaults(run=run, parser=runs)


def show(args: argparse.Namespace) -> None:
    """Print the recipe."""
    recipe_file(Path(args.recipe))
    from ..analysis.facts import printable
    from ..recipes import read_recipe

    recipe = read_recipe(args.recipe)
    _warn(recipe)
    if args.json:
        print_json(recipe.to_dict())
        return
    how = {
        key: value for key, value in recipe.to_dict().items() if key not in ("sources", "recipe", "params")
    }
    for key, value in (how | recipe.params).items():
        if value is not None:
            say(f"{key}: {printable(str(value))}")
    rows = [["source", "weight", "text weight", "SHA-256", "blocks"]]
    for source, text_weight in zip(recipe.sources, recipe.text_weights, strict=True):
        numbers = [f"{source.weight:g}", f"{text_weight:g}"]
        name = f"{source.name} (adapter {printable(source.adapter)})" if source.adapter else source.name
        rows.append([name, *numbers, source.sha256 or "unknown", source.blocks or ""])
    if not any(recipe.blocks):
        rows = [row[:-1] for row in rows]
    say(table(rows))


def run(args: argparse.Namespace) -> None:
    """Find the sources, merge, save and report."""
    require_output(args)
    wanted = rank_of(args)
    recipe_file(Path(args.recipe))
    from ..formats import alike_by_diffusers
    from ..merging.devices import usable_device
    from ..recipes import find_sources, read_recipe

    recipe = read_recipe(args.recipe)
    _warn(recipe)
    by_need = isinstance(wanted, RankRule)
    if isinstance(wanted, RankRule):
        recipe = replace(recipe, rank=None, ranks=None)
    elif wanted is not None:
        recipe = replace(recipe, rank=wanted, ranks=None)
    loras = alike_by_diffusers(find_sources(recipe, args.folder or [Path(args.recipe).parent]))
    refuse_output(args, loras)
    with progress_bar("merging") as progress:
        merged = recipe.run(loras, device=usable_device(args.device), progress=progress, base=args.base)
    plan = measure_sizes(args, merged, wanted) if by_need else None
    finish(args, merged, wanted if by_need else recipe.rank, plan)


def _warn(recipe: Recipe) -> None:
    """Print the recipe's warnings on standard error, so that ``--json`` stays valid JSON."""
    for warning in recipe.warnings:
        say(f"lora-alloy: warning: {warning}", sys.stderr)
