"""``lora-alloy extract``: write the difference of two models as a LoRA."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..extracting.options import RANK, ExtractOptions
from ..formats.paths import check_model
from ..saving.file_names import check_destination
from .options import (
    Commands,
    UsageError,
    add_command,
    add_output,
    dtype_of,
    print_json,
    print_saved,
    progress_bar,
    refuse_warnings,
    require_output,
    say,
    table,
)

if TYPE_CHECKING:
    from ..extracting import Extracted

_EXAMPLES = """examples:
  lora-alloy extract tuned.safetensors base.safetensors --rank 32 -o tuned_lora.safetensors
  lora-alloy extract tuned.safetensors base.safetensors --energy 0.95 --rank 128 -o tuned_lora.safetensors
  lora-alloy extract tuned_folder base_folder --device cuda -o tuned_lora.safetensors
  lora-alloy extract tuned_llm base_llm --rank 64 -o adapter
  lora-alloy extract tuned.safetensors base.safetensors --energy 0.9 --dry-run
"""


def add_parser(commands: Commands[argparse.ArgumentParser], _argv: list[str]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "extract",
        "write the difference of two models as a LoRA",
        "Write what a tuned model has learned beyond its base as a LoRA. Models are single-file checkpoints, "
        "or folders of diffusers or transformers; they are read one weight at a time.",
        _EXAMPLES,
    )
    parser.add_argument("tuned", metavar="TUNED", help="the tuned model: a .safetensors file or a folder")
    parser.add_argument("base", metavar="BASE", help="what it was tuned from; its layout may be another one")
    how = parser.add_argument_group("how much to keep")
    how.add_argument(
        "--rank", type=int,
        help=f"rank of every layer (default: {RANK}); with --energy the largest that a layer may get",
    )  # fmt: skip
    how.add_argument(
        "--energy", type=float, metavar="SHARE",
        help="share of each layer's difference to hold, as of squared norms: 0.95 leaves an error of 22 %%; "
        "each layer gets the smallest rank that does",
    )  # fmt: skip
    how.add_argument(
        "--conv-rank", type=int, help="rank of convolutions with kernels larger than 1 (default: --rank)"
    )
    how.add_argument(
        "--min-diff", type=float, default=0.0, metavar="X",
        help="leave out weights none of whose entries differ by more than this (default: 0)",
    )  # fmt: skip
    how.add_argument(
        "--clamp", type=float, metavar="QUANTILE",
        help="clip the entries of both factors at this quantile, as kohya's clamp_quantile does with 0.99",
    )  # fmt: skip
    how.add_argument(
        "--vectors", action=argparse.BooleanOptionalAction, default=True,
        help="also store differences of biases and norms; ComfyUI reads them, diffusers and many others do "
        "not (default: on)",
    )  # fmt: skip
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Open both models, extract, save and report."""
    require_output(args)
    options = ExtractOptions(
        rank=args.rank, energy=args.energy, conv_rank=args.conv_rank, min_diff=args.min_diff,
        clamp=args.clamp, vectors=args.vectors,
    )  # fmt: skip
    if args.format != "auto":
        _refuse_output(args, args.format)
    for model in (args.tuned, args.base):
        check_model(Path(model))
    from ..extracting import extract
    from ..formats.model_files import open_whole_model
    from ..merging.devices import usable_device
    from ..saving import save

    tuned, base = open_whole_model(args.tuned), open_whole_model(args.base)
    if args.format == "auto":
        _refuse_output(args, tuned.dialect)
    with progress_bar("extracting", unit="weight") as progress:
        extracted = extract(
            tuned, base, device=usable_device(args.device), progress=progress, **options.to_dict()
        )
    if args.strict:
        refuse_warnings(extracted)
    if args.dry_run:
        _print_plan(extracted, args.json)
        return
    with progress_bar("saving") as progress:
        saved = save(
            extracted, args.output, None, args.format, dtype_of(args.dtype), overwrite=args.overwrite,
            progress=progress,
        )  # fmt: skip
    if args.json:
        print_json({"extracted": extracted.found.to_dict(), "saved": saved.to_dict()})
        return
    _print_summary(extracted)
    print_saved(saved)


def _refuse_output(args: argparse.Namespace, form: str) -> None:
    """Refuse the output options before anything is computed, as saving would afterwards."""
    if form == "diffusers" and args.vectors:
        raise UsageError("a diffusers file holds no differences of biases and norms; add --no-vectors")
    if args.output:
        check_destination(Path(args.output), form, args.overwrite)


def _print_plan(extracted: Extracted, as_json: bool) -> None:
    """Print the result of a dry run: a line for each layer, and what is kept in all."""
    from ..saving.kept import kept_by_extraction

    if as_json:
        print_json({"extracted": extracted.found.to_dict()})
        return
    rows = [["layer", "rank", "held", "share of the difference"]]
    rows += [
        [each.name, str(each.rank or "whole"), f"{each.held:.1%}", f"{each.share:.2%}"]
        for each in extracted.found.layers
    ]
    say(table(rows))
    _print_summary(extracted)
    kept = kept_by_extraction(extracted)
    say(f"  {'warning: ' if kept.is_low else ''}{kept.sentence()}")
    say("dry run: nothing was written")


def _print_summary(extracted: Extracted) -> None:
    """Print what is in the LoRA, what is not and why."""
    record = extracted.request.extracted or {}
    low, high = extracted.found.ranks
    ranks = "" if not high else f", rank {high}" if low == high else f", ranks {low} to {high}"
    names = f"{extracted.loras[0].name} over {record['base']['name']}"
    say(f"extracted {names}: {len(extracted.layers)} layers{ranks}")
    for line in extracted.found.lines():
        say(f"  {line}")
    for warning in extracted.outline.warnings:
        say(f"  warning: {warning}")
