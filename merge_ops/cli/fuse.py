"""``lora-alloy fuse``: write a text model with merged LoRAs in its weights."""

from __future__ import annotations

import argparse

from ..merging.misfits import describe_misfits
from ..models import FuseReport, fuse
from ..models.fusing import check_fused
from .how import add_merging, method_help
from .merge import load_loras, merge_loras
from .options import Commands, add_command, print_json, progress_bar, require_output, say, table
from .summary import print_summary

_EXAMPLES = """examples:
  lora-alloy fuse base_model adapter_a:0.7 adapter_b:0.3 -o fused_model
  lora-alloy fuse base_model adapter_a adapter_b --method ties --density 0.3 -o fused_model
  lora-alloy fuse base_model adapter_a --dry-run
"""


def add_parser(commands: Commands[argparse.ArgumentParser], argv: list[str]) -> None:
    """Add the command, with the merging options of ``merge``."""
    parser = add_command(
        commands,
        "fuse",
        "write a text model with merged LoRAs in its weights",
        "Write a copy of a transformers folder with merged LoRAs added to its weights. Shards and dtypes "
        "stay the same, and only one tensor is in memory at a time.",
        method_help() + _EXAMPLES,
    )
    parser.add_argument(
        "base", metavar="BASE", help="base model: a folder with config.json and model.safetensors"
    )
    add_merging(parser, argv)
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output", metavar="FOLDER", help="the folder to write, which must not exist yet")
    out.add_argument("--dry-run", action="store_true", help="check everything, but write nothing")
    out.add_argument("--json", action="store_true", help="print the report as JSON")
    out.add_argument("--device", help="device to compute on: cpu, cuda, mps, xpu (default: cpu)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load, merge, fuse and report."""
    require_output(args)
    if args.output:
        check_fused(args.base, args.output)
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
        return
    say(f"wrote {report.path} ({counts}, {report.size / 1e6:.2f} MB), read back and compared")
    worst = max(report.changes, key=lambda line: line.rounding / (line.delta or 1.0))
    share = worst.rounding / (worst.delta or 1.0)
    say(f"  rounding error: at most {share:.2e} of a delta ({worst.name})")
    if report.misfits:
        say(f"  {describe_misfits(report.misfits)}")
    if report.left_out:
        say(f"  not copied: {', '.join(report.left_out)}")
