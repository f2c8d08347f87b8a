"""``lora-alloy resize``: write a LoRA at a lower rank, or in a smaller file."""

from __future__ import annotations

import argparse

from .merge import finish
from .options import (
    Commands,
    UsageError,
    add_base,
    add_command,
    add_output,
    add_reading,
    progress_bar,
    read_loras,
    refuse_output,
    require_output,
)
from .ranks import add_dynamic, add_ranks, measure_sizes, print_ranks, rank_of

_EXAMPLES = """examples:
  lora-alloy resize big.safetensors --dry-run
  lora-alloy resize big.safetensors --rank 16 -o small.safetensors
  lora-alloy resize big.safetensors --energy 0.95 -o small.safetensors
  lora-alloy resize big.safetensors --size 50MB --per-layer -o small.safetensors
  lora-alloy resize big.safetensors --dynamic_method sv_fro --dynamic_param 0.9 --new_rank 32 -o x.safetensors
  lora-alloy resize peft_adapter --rank 8 --format peft -o smaller_adapter
"""


def add_parser(commands: Commands[argparse.ArgumentParser], _argv: list[str]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "resize",
        "write a LoRA at a lower rank, or in a smaller file",
        "Write a LoRA at a lower rank, with the best possible approximation of each layer. The rank is the "
        "same for all layers, or chosen for each by need; --dry-run alone prints what files of several sizes "
        "would keep.",
        _EXAMPLES,
    )
    parser.add_argument("lora", metavar="LORA", help="a LoRA file or PEFT folder")
    parser.add_argument(
        "--rank", "--new_rank", type=int,
        help="the largest rank to keep; layers with a smaller one stay as they are",
    )  # fmt: skip
    add_ranks(parser)
    add_dynamic(parser)
    add_base(parser)
    add_output(parser)
    add_reading(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load, truncate, save and report."""
    require_output(args)
    rank = rank_of(args)
    if rank is None and not args.dry_run:
        raise UsageError(
            "say how small: --rank, --energy, --ratio or --size; --dry-run prints a table of sizes"
        )
    (lora,) = read_loras(args, [args.lora])
    refuse_output(args, [lora])
    from ..merging.devices import usable_device
    from ..merging.merge import merge

    fixed = rank if isinstance(rank, int) and not args.dry_run else None
    with progress_bar("resizing") as progress:
        device = usable_device(args.device)
        merged = merge([lora], rank=fixed, base=args.base, device=device, progress=progress)
    plan = None
    if fixed is None:
        plan = measure_sizes(args, merged, rank)
        if args.verbose and not args.json:
            print_ranks(merged, plan)
    finish(args, merged, rank, plan)
