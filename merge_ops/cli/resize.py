"""``lora-alloy resize``: write a LoRA at a lower rank."""

from __future__ import annotations

import argparse

from ..merging.devices import usable_device
from ..merging.merge import merge
from .merge import finish
from .options import (
    Commands,
    add_command,
    add_output,
    add_reading,
    progress_bar,
    read_loras,
    refuse_output,
    require_output,
)

_EXAMPLES = """examples:
  lora-alloy resize big.safetensors --rank 16 -o small.safetensors
  lora-alloy resize peft_adapter --rank 8 --format peft -o smaller_adapter
"""


def add_parser(commands: Commands[argparse.ArgumentParser], _argv: list[str]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "resize",
        "write a LoRA at a lower rank",
        "Write a LoRA at a lower rank, with the best possible approximation of each layer.",
        _EXAMPLES,
    )
    parser.add_argument("lora", metavar="LORA", help="a LoRA file or PEFT folder")
    parser.add_argument(
        "--rank",
        type=int,
        required=True,
        help="the largest rank to keep; layers with a smaller one stay as they are",
    )
    add_output(parser)
    add_reading(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load, truncate, save and report."""
    require_output(args)
    (lora,) = read_loras(args, [args.lora])
    refuse_output(args, [lora])
    with progress_bar("resizing") as progress:
        merged = merge([lora], rank=args.rank, device=usable_device(args.device), progress=progress)
    finish(args, merged, args.rank)
