"""``lora-alloy resize``."""

from __future__ import annotations

import argparse

from ..errors import ParameterError
from ..formats import load
from ..merging.merge import merge
from .merge import finish
from .options import Commands, add_output, add_reading, chosen_device, progress_bar

_EXAMPLES = """examples:
  lora-alloy resize big.safetensors --rank 16 -o small.safetensors
  lora-alloy resize peft_adapter --rank 8 --format peft -o smaller_adapter
"""


def add_parser(commands: Commands[argparse.ArgumentParser], _argv: list[str]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "resize",
        help="write a LoRA at a lower rank",
        description="Write a LoRA at a lower rank: the best approximation of each layer.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("lora", metavar="LORA", help="a file or PEFT folder")
    parser.add_argument("--rank", type=int, required=True, help="the rank of every layer that has more")
    add_output(parser)
    add_reading(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Read, truncate, save and report."""
    if not args.output and not args.dry_run:
        raise ParameterError("say where to write with -o FILE, or use --dry-run")
    lora = load(args.lora, allow_pickle=args.allow_pickle)
    with progress_bar("resizing") as progress:
        merged = merge([lora], rank=args.rank, device=chosen_device(args.device), progress=progress)
    finish(args, merged, args.rank)
