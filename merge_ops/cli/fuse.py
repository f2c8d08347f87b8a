"""``lora-alloy fuse``: write a model with merged LoRAs in its weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.paths import KINDS_OF_BASE, check_model
from ..saving.file_names import check_new
from .how import add_merging, check_params, method_help, paths_of
from .merge import load_loras, merge_loras
from .options import Commands, add_command, check_paths, print_json, progress_bar, require_output, say, table
from .summary import print_summary

if TYPE_CHECKING:
    from ..models import FuseReport

_EXAMPLES = """examples:
  lora-alloy fuse sdxl.safetensors ink.safetensors:0.8 mia.safetensors:0.6 -o sdxl_ink_mia.safetensors
  lora-alloy fuse flux1-dev-fp8.safetensors style.safetensors -o flux1-style-fp8.safetensors
  lora-alloy fuse stable-diffusion-xl-base-1.0 ink.safetensors -o sdxl_ink
  lora-alloy fuse base_model adapter_a adapter_b:0.3 --method ties --density 0.3 -o fused_model
  lora-alloy fuse sdxl.safetensors ink.safetensors --dry-run
"""


def add_parser(commands: Commands[argparse.ArgumentParser], argv: list[str]) -> None:
    """Add the command, with the merging options of ``merge``."""
    parser = add_command(
        commands,
        "fuse",
        "write a model with merged LoRAs in its weights",
        "Write a copy of a model with merged LoRAs added to its weights: of a single-file checkpoint, or of "
        "a diffusers or transformers folder. Files, dtypes and all other tensors stay the same, and only one "
        "tensor is in memory at a time.",
        method_help() + _EXAMPLES,
    )
    parser.add_argument(
        "base",
        metavar="BASE",
        help="base model: a .safetensors checkpoint, or a diffusers or transformers folder",
    )
    add_merging(parser, argv, reader="comfyui for a single file, peft for a folder")
    out = parser.add_argument_group("output")
    out.add_argument(
        "-o", "--output", metavar="PATH", help="the file or folder to write, which must not exist yet"
    )
    out.add_argument("--dry-run", action="store_true", help="check everything, but write nothing")
    out.add_argument("--json", action="store_true", help="print the report as JSON")
    out.add_argument("--device", help="device to compute on: cpu, cuda, mps, xpu (default: cpu)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load, merge, fuse and report."""
    require_output(args)
    check_params(args)
    if args.output:
        check_new(Path(args.output))
    check_model(Path(args.base), KINDS_OF_BASE)
    check_paths(paths_of(args))
    from ..models import fuse
    from ..models.fusing import check_fused

    if args.output:
        check_fused(args.base, args.output)
    if args.reader is None:
        args.reader = "comfyui" if Path(args.base).is_file() else "peft"
    merged = merge_loras(args, load_loras(args))
    with progress_bar("fusing") as progress:
        report = fuse(args.base, merged, None if args.dry_run else args.output, progress=progress)
    if args.json:
        print_json({"merge": merged.outline.to_dict(), "fused": report.to_dict()})
        return
    if args.dry_run:
        say(table([["tensor", "layer"], *([tensor, layer] for tensor, layer in report.fused.items())]))
    print_summary(merged)
    _print_report(report)


def _print_report(report: FuseReport) -> None:
    counts = f"{len(report.fused)} of {report.tensors} tensors changed"
    if not report.path:
        say(f"dry run: {counts}, {report.size / 1e6:.2f} MB; nothing was written")
    else:
        say(f"wrote {report.path} ({counts}, {report.size / 1e6:.2f} MB), read back and compared")
        _print_errors(report)
    if report.misfits:
        from ..merging.misfits import describe_misfits

        say(f"  {describe_misfits(report.misfits)}")
    if report.left_out:
        say(f"  not copied: {', '.join(report.left_out)}")


def _print_errors(report: FuseReport) -> None:
    worst = max(report.changes, key=lambda line: line.rounding / (line.delta or 1.0))
    share = worst.rounding / (worst.delta or 1.0)
    say(f"  rounding error: at most {share:.2e} of a delta ({worst.name})")
    weight = max(line.rounding / (line.weight or 1.0) for line in report.changes)
    say(f"  and at most {weight:.2e} of a weight")
