"""``lora-alloy merge``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ParameterError, UnknownMethodError, did_you_mean
from ..formats import alike_by_diffusers, load
from ..lora import READERS, Lora
from ..merging.merge import merge
from ..merging.merged import Merged
from ..methods.peft_names import COMBINATION_TYPES, SPACES, get_combination_type
from ..methods.registry import METHODS, Param, get_method
from ..saving import save
from .options import (
    DTYPES,
    Commands,
    add_base,
    add_output,
    add_param,
    add_reading,
    chosen_device,
    print_json,
    print_saved,
    progress_bar,
    refuse_odd,
)
from .summary import print_plan, print_summary

_PEFT_PARAMS = ("density", "majority_sign_method")
_EXAMPLES = """examples:
  lora-alloy merge ink.safetensors:0.8 mia.safetensors:0.6 -o both.safetensors
  lora-alloy merge a.safetensors:1 b.safetensors:1 --method ties --density 0.3 --rank 32 -o ab.safetensors
  lora-alloy merge a.safetensors b.safetensors --combination-type ties_svd --density 0.5 -o ab.safetensors
  lora-alloy merge adapter_a adapter_b:0.5 --format peft -o merged_adapter
  lora-alloy merge a.safetensors b.safetensors --blocks "a=down:0.5 mid:1 attn:0.8" -o ab.safetensors
  lora-alloy merge a.safetensors b.safetensors --method ties --dry-run
"""


def add_parser(commands: Commands[argparse.ArgumentParser], argv: list[str]) -> None:
    """Add the command; the flags of the chosen method come from its signature."""
    parser = commands.add_parser(
        "merge",
        help="merge LoRAs into one file",
        description="Merge LoRAs into one file that loads at strength 1.",
        epilog=f"{method_help()}\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_merging(parser, argv)
    add_base(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def add_merging(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Add what says which LoRAs to merge, and how."""
    parser.add_argument(
        "loras", nargs="+", metavar="LORA[:WEIGHT]", help="a file or PEFT folder, and its weight (default: 1)"
    )
    how = parser.add_argument_group("how to merge")
    choice = how.add_mutually_exclusive_group()
    choice.add_argument("--method", type=_method_name, metavar="METHOD", help="default: linear")
    names = ", ".join(COMBINATION_TYPES)
    choice.add_argument("--combination-type", type=_combination_name, metavar="TYPE", help=f"PEFT's: {names}")
    how.add_argument(
        "--space", choices=SPACES, default="delta", help="where to merge (default: delta, exact)"
    )
    how.add_argument(
        "--rank", type=int, help="truncate to this rank (default: exact, or the sum of the ranks)"
    )
    how.add_argument(
        "--blocks", action="append", default=[], metavar="[LORA=]TEXT",
        help="strengths by block and sort of layer, such as 'down:0.5 mid:1 attn:0.8', a preset or an A1111 "
        "vector, of all LoRAs or of one, called by its name or place (1, 2, ...); may be repeated",
    )  # fmt: skip
    how.add_argument("--scale", type=float, default=1.0, help="multiplies the whole result")
    how.add_argument("--seed", type=int, default=0, help="of the random masks of DARE")
    how.add_argument("--svd-rank", type=int, help="rank of PEFT's *svd types (default: the largest)")
    how.add_argument(
        "--svd-clamp", type=float, help="quantile at which PEFT's *svd types clamp their factors"
    )
    how.add_argument("--keep", metavar="NAME", help="LoRA whose heads and other whole weights are kept")
    how.add_argument(
        "--reader",
        choices=READERS,
        default="peft",
        help="whose arithmetic DoRA and OFT follow where programs differ (default: peft)",
    )
    for param in _params_of(argv).values():
        add_param(how, param)
    add_reading(parser)


def run(args: argparse.Namespace) -> None:
    """Read, merge, save and report."""
    if not args.output and not args.dry_run:
        raise ParameterError("say where to write with -o FILE, or use --dry-run")
    finish(args, merged_from(args), args.rank)


def merged_from(args: argparse.Namespace) -> Merged:
    """Read the LoRAs and merge them as the options say."""
    specs = [split_weight(spec) for spec in args.loras]
    loras = alike_by_diffusers([load(path, allow_pickle=args.allow_pickle) for path, _ in specs])
    given = vars(args)
    names = {name for method in METHODS.values() for name in (p.name for p in method.params)}
    params = {name: given[name] for name in names if name in given}
    with progress_bar("merging") as progress:
        return merge(
            loras,
            [weight for _, weight in specs],
            args.method,
            blocks=blocks_of(args.blocks, [path for path, _ in specs], loras),
            space=args.space,
            rank=args.rank,
            scale=args.scale,
            seed=args.seed,
            device=chosen_device(args.device),
            combination_type=args.combination_type,
            svd_rank=args.svd_rank,
            svd_clamp=args.svd_clamp,
            progress=progress,
            base=args.base,
            reader=args.reader,
            keep=args.keep,
            **params,
        )


def finish(args: argparse.Namespace, merged: Merged, rank: int | None) -> None:
    """Save the merge as the output options say, and print the reports."""
    if args.strict:
        refuse_odd(merged)
    if args.dry_run:
        print_plan(merged, args.json)
        return
    with progress_bar("saving") as progress:
        saved = save(
            merged,
            args.output,
            rank,
            args.format,
            DTYPES[args.dtype],
            overwrite=args.overwrite,
            progress=progress,
        )
    if args.json:
        print_json({"merge": merged.report.to_dict(), "saved": saved.to_dict()})
        return
    print_summary(merged)
    print_saved(saved)


def split_weight(spec: str) -> tuple[str, float]:
    """``path:0.7`` is the path and its weight; without a number behind the last colon the weight is 1."""
    path, colon, number = spec.rpartition(":")
    try:
        return (path, float(number)) if colon and path else (spec, 1.0)
    except ValueError:
        return spec, 1.0


def blocks_of(given: list[str], paths: list[str], loras: list[Lora]) -> list[str | None]:
    """The block strengths of each LoRA, from ``TEXT`` and ``LORA=TEXT``."""
    own: dict[int, str] = {}
    shared = None
    for option in given:
        name, equals, text = option.rpartition("=")
        if not equals:
            if shared is not None:
                raise ParameterError("--blocks is given twice for all LoRAs; name the LoRA, as in a=down:0.5")
            shared = text
            continue
        called = [i for i, path in enumerate(paths) if name in (path, Path(path).name, loras[i].name)]
        if not called and name.isdigit() and 0 < int(name) <= len(paths):
            called = [int(name) - 1]
        if not called:
            hint = did_you_mean(name, [lora.name for lora in loras])
            raise ParameterError(f"--blocks names no LoRA of this merge: {name!r}{hint}")
        for i in called:
            if i in own:
                raise ParameterError(f"--blocks is given twice for {loras[i].name}; write one text")
            own[i] = text
    return [own.get(i, shared) for i in range(len(paths))]


def _method_name(name: str) -> str:
    try:
        return get_method(name).name
    except UnknownMethodError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _combination_name(name: str) -> str:
    try:
        get_combination_type(name)
    except UnknownMethodError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def _params_of(argv: list[str]) -> dict[str, Param]:
    """The parameters of the method that the arguments name, found before they are parsed for good."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--method", default="linear")
    early.add_argument("--combination-type")
    chosen = early.parse_known_args(argv)[0]
    row = COMBINATION_TYPES.get(chosen.combination_type or "")
    if row is not None:  # PEFT takes density and the sign vote for every type
        return {p.name: p for method in METHODS.values() for p in method.params if p.name in _PEFT_PARAMS}
    method = METHODS.get(chosen.method)
    return {p.name: p for p in method.params} if method else {}


def method_help() -> str:
    """What each method takes, for ``--help``."""
    lines = ["parameters of the methods:"]
    for method in METHODS.values():
        flags = [f"--{p.name.replace('_', '-')} (default: {p.default})" for p in method.params]
        lines.append(f"  {method.name:<16} {', '.join(flags) or 'none'}")
    return "\n".join(lines) + "\n"
