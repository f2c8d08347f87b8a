"""``lora-alloy merge``: load the LoRAs, merge them, and save the result."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..merging.rank_rule import RankRule
from .how import add_merging, blocks_of, check_params, method_help, method_params, paths_of, split_weight
from .options import (
    Commands,
    add_base,
    add_command,
    add_output,
    dtype_of,
    print_json,
    print_saved,
    progress_bar,
    read_loras,
    refuse_output,
    refuse_warnings,
    require_output,
)
from .ranks import add_ranks, measure_sizes, print_sizes, rank_of
from .summary import print_plan, print_summary

if TYPE_CHECKING:
    from ..lora import Lora
    from ..merging.merged import Merged
    from ..saving import SizePlan

_EXAMPLES = """examples:
  lora-alloy merge ink.safetensors:0.8 mia.safetensors:0.6 -o both.safetensors
  lora-alloy merge a.safetensors:1 b.safetensors:1 --method ties --density 0.3 --rank 32 -o ab.safetensors
  lora-alloy merge a.safetensors b.safetensors --combination-type ties_svd --density 0.5 -o ab.safetensors
  lora-alloy merge adapter_a adapter_b:0.5 --format peft -o merged_adapter
  lora-alloy merge a.safetensors b.safetensors --blocks "a=down:0.5 mid:1 attn:0.8" -o ab.safetensors
  lora-alloy merge "epochs/ink-*.safetensors" --method mean --recency 0.8 -o ink.safetensors
  lora-alloy merge a.safetensors b.safetensors --method ties --size 50MB -o ab.safetensors
  lora-alloy merge a.safetensors b.safetensors --method ties --dry-run
"""


def add_parser(commands: Commands[argparse.ArgumentParser], argv: list[str]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "merge",
        "merge LoRAs into one file",
        "Merge LoRAs into one file that gives the merged result when loaded at strength 1.",
        method_help() + _EXAMPLES,
    )
    add_merging(parser, argv)
    add_base(parser)
    add_ranks(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load, merge, save and report."""
    require_output(args)
    rank = rank_of(args)
    check_params(args)
    loras = load_loras(args)
    refuse_output(args, loras)
    by_need = isinstance(rank, RankRule)
    merged = merge_loras(args, loras, exact=by_need)
    finish(args, merged, rank, measure_sizes(args, merged, rank) if by_need else None)


def load_loras(args: argparse.Namespace) -> list[Lora]:
    """Read the LoRAs of the command line, with the layer names of one architecture."""
    loras = read_loras(args, paths_of(args))
    from ..formats import alike_by_diffusers

    return alike_by_diffusers(loras)


def merge_loras(args: argparse.Namespace, loras: list[Lora], exact: bool = False) -> Merged:
    """Merge LoRAs with the options of the command line; ``exact`` leaves the rank to what saves the merge."""
    from ..merging.devices import usable_device
    from ..merging.merge import merge

    paths, weights = zip(*map(split_weight, args.loras), strict=True)
    with progress_bar("merging") as progress:
        return merge(
            loras,
            list(weights),
            args.method,
            blocks=blocks_of(args.blocks, list(paths), loras),
            space=args.space,
            rank=None if exact else args.rank,
            scale=args.scale,
            seed=args.seed,
            device=usable_device(args.device),
            combination_type=args.combination_type,
            svd_rank=args.svd_rank,
            svd_clamp=args.svd_clamp,
            progress=progress,
            base=args.base,
            reader=args.reader,
            keep=args.keep,
            apart=[False] * len(loras) if args.speed_loras == "merged" else None,
            **method_params(args),
        )


def finish(
    args: argparse.Namespace, merged: Merged, rank: int | RankRule | None, plan: SizePlan | None = None
) -> None:
    """Save a merge as the output options say, and print the reports; ``plan`` has the ranks by need."""
    if args.strict:
        refuse_warnings(merged)
    if args.dry_run:
        print_plan(merged, args.json, plan)
        return
    if plan is not None and not args.json:
        print_sizes(plan)
    from ..saving import save

    with progress_bar("saving") as progress:
        saved = save(
            merged,
            args.output,
            rank,
            args.format,
            dtype_of(args.dtype),
            overwrite=args.overwrite,
            progress=progress,
        )
    if args.json:
        sizes = {} if plan is None else {"sizes": plan.to_dict()}
        print_json({"merge": merged.report.to_dict(), **sizes, "saved": saved.to_dict()})
        return
    print_summary(merged)
    print_saved(saved)
