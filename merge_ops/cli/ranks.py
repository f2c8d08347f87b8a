"""The options that choose ranks by need, and the table of what files of other sizes would keep."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..merging.rank_rule import RankRule, parse_size
from .options import UsageError, dtype_of, progress_bar, say, table

if TYPE_CHECKING:
    from ..merging.merged import Merged
    from ..saving import SizeLine, SizePlan

DYNAMIC_METHODS = ("sv_ratio", "sv_fro", "sv_cumulative")  # of kohya's resize_lora.py


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that writes a merge; ``--rank`` is the command's own."""
    group = parser.add_argument_group("ranks by need (with --rank as the largest)")
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "--energy",
        type=float,
        metavar="SHARE",
        help="keep this share of the energy, the squared Frobenius norm, in the smallest file: 0.95 keeps "
        "95 %%",
    )
    one.add_argument(
        "--ratio", type=float, help="keep singular values larger than the largest one divided by this"
    )
    one.add_argument(
        "--size",
        metavar="SIZE",
        help="keep as much energy as fits into a file of this size: 50MB (50,000,000 bytes), 48MiB, 900kB",
    )
    group.add_argument(
        "--per-layer",
        action="store_true",
        help="judge each layer by itself: it keeps this share of its own energy, or this ratio to its own "
        "largest value; a size is filled with the same share of every layer",
    )
    group.add_argument(
        "--conv-rank", "--new_conv_rank", type=int, metavar="RANK",
        help="the largest rank of convolutions (default: that of --rank)",
    )  # fmt: skip


def add_dynamic(parser: argparse.ArgumentParser) -> None:
    """Add the options of kohya's ``resize_lora.py`` by their names."""
    group = parser.add_argument_group("the same, by the names of kohya's resize_lora.py")
    group.add_argument(
        "--dynamic_method", "--dynamic-method", choices=DYNAMIC_METHODS,
        help="judge each layer by itself: sv_ratio is --ratio, sv_fro the share of the Frobenius norm (the "
        "square root of the energy), sv_cumulative the share of the sum of the singular values; needs "
        "--new_rank, the largest rank",
    )  # fmt: skip
    group.add_argument(
        "--dynamic_param", "--dynamic-param", type=float, metavar="VALUE", help="the ratio, or the share"
    )
    group.add_argument("--verbose", action="store_true", help="print the rank and the energy of each layer")


def rank_of(args: argparse.Namespace) -> int | RankRule | None:
    """Return the rank that the options ask for, or the rule that chooses one for each layer.

    Raises:
        UsageError: for options that contradict each other.
        ParameterError: for a value that is not allowed.
    """
    given = vars(args)
    rule: dict[str, Any] = {"energy": args.energy, "ratio": args.ratio, "per_layer": args.per_layer}
    rule["size"] = None if args.size is None else parse_size(args.size)
    if given.get("dynamic_method") or given.get("dynamic_param") is not None:
        rule = _dynamic(args)
    chosen = any(value is not None for name, value in rule.items() if name != "per_layer")
    if args.per_layer and not chosen:
        raise UsageError("--per-layer belongs to --energy, --ratio or --size")
    if not chosen and args.conv_rank is None:
        rank: int | None = args.rank
        return rank
    return RankRule(**rule, limit=args.rank, conv_limit=args.conv_rank)


def _dynamic(args: argparse.Namespace) -> dict[str, Any]:
    if args.dynamic_method is None or args.dynamic_param is None:
        raise UsageError("--dynamic_method and --dynamic_param belong together")
    if args.energy is not None or args.ratio is not None or args.size is not None:
        raise UsageError("give either --dynamic_method or one of --energy, --ratio and --size")
    if args.rank is None:
        raise UsageError(
            "--dynamic_method needs the largest rank as --new_rank; kohya's script takes 4 without it"
        )
    value = args.dynamic_param
    how = {
        "sv_ratio": {"ratio": value},
        "sv_cumulative": {"cumulative": value},
        "sv_fro": {"energy": value**2 if 0 < value <= 1 else value},
    }
    return {**how[args.dynamic_method], "per_layer": True}


def measure_sizes(args: argparse.Namespace, merged: Merged, rank: int | RankRule | None) -> SizePlan:
    """Return what files of several sizes keep, and the one that the options ask for."""
    from ..saving import plan_sizes

    rule = RankRule(limit=rank) if isinstance(rank, int) else rank
    with progress_bar("measuring") as progress:
        return plan_sizes(merged, rule, args.output, args.format, dtype_of(args.dtype), progress)


def print_sizes(plan: SizePlan) -> None:
    """Print the table of sizes, with the file that is asked for among them."""
    lines = [(line, "") for line in plan.lines]
    if plan.chosen is not None:
        lines = [(line, mark) for line, mark in lines if line.size != plan.chosen.size]
        lines.append((plan.chosen, "this file"))
    lines.sort(key=lambda pair: pair[0].size)
    say(table([["energy", "ranks", "mean", "size", ""], *(_cells(line, mark) for line, mark in lines)]))


def print_ranks(merged: Merged, plan: SizePlan) -> None:
    """Print the rank that each layer gets, and the share of its energy that this keeps."""
    layers = merged.spectra().layers
    rows = [
        [name, str(len(layers[name].squares)), str(rank), f"{layers[name].share(rank):.2%}"]
        for name, rank in plan.ranks.items()
    ]
    say(table([["layer", "rank", "kept", "energy"], *rows]))


def _cells(line: SizeLine, mark: str) -> list[str]:
    low, high = line.smallest_rank, line.largest_rank
    ranks = str(high) if low == high else f"{low} to {high}"
    return [f"{line.energy:.2%}", ranks, f"{line.mean_rank:.1f}", f"{line.size / 1e6:.2f} MB", mark]
