"""``lora-alloy fuse``."""

from __future__ import annotations

import argparse

from ..errors import ParameterError
from ..models import FuseReport, fuse
from .merge import add_merging, merged_from, method_help
from .options import Commands, print_json, progress_bar, table
from .summary import print_summary

_EXAMPLES = """examples:
  lora-alloy fuse base_model adapter_a:0.7 adapter_b:0.3 -o fused_model
  lora-alloy fuse base_model adapter_a adapter_b --method ties --density 0.3 -o fused_model
  lora-alloy fuse base_model adapter_a --dry-run
"""


def add_parser(commands: Commands[argparse.ArgumentParser], argv: list[str]) -> None:
    """Add the command; how to merge is said as for ``merge``."""
    parser = commands.add_parser(
        "fuse",
        help="write a text model with merged LoRAs in its weights",
        description="Write a transformers folder with merged LoRAs in its weights: same shards, same dtypes, "
        "one tensor in memory at a time.",
        epilog=f"{method_help()}\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", metavar="BASE", help="a folder with config.json and model.safetensors")
    add_merging(parser, argv)
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output", metavar="FOLDER", help="the folder to write, which must not exist")
    out.add_argument("--dry-run", action="store_true", help="check everything, and write nothing")
    out.add_argument("--json", action="store_true", help="print the report as JSON")
    out.add_argument("--device", help="where to compute: cpu, cuda, mps, xpu (default: cpu)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Read, merge, fuse and report."""
    if not args.output and not args.dry_run:
        raise ParameterError("say where to write with -o FOLDER, or use --dry-run")
    merged = merged_from(args)
    with progress_bar("fusing") as progress:
        report = fuse(args.base, merged, None if args.dry_run else args.output, progress=progress)
    if args.json:
        print_json({"merge": merged.outline.to_dict(), "fused": report.to_dict()})
        return
    if args.dry_run:
        print(table([["tensor", "layer"], *([tensor, layer] for tensor, layer in report.fused.items())]))
    print_summary(merged)
    _print_report(report)


def _print_report(report: FuseReport) -> None:
    counts = f"{len(report.fused)} of {report.tensors} tensors changed"
    if not report.path:
        print(f"dry run: {counts}, {report.size / 1e6:.2f} MB; nothing was written")
        return
    print(f"wrote {report.path} ({counts}, {report.size / 1e6:.2f} MB), read back and compared")
    worst = max(report.changes, key=lambda line: line.rounding / (line.delta or 1.0))
    share = worst.rounding / (worst.delta or 1.0)
    print(f"  lost by rounding: at most {share:.2e} of a delta ({worst.name})")
    if report.left_out:
        print(f"  not copied: {', '.join(report.left_out)}")
