"""``lora-alloy measure``: how much of each LoRA a merge keeps, with the model at hand."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..methods.registry import get_method
from .how import add_merging, check_params, method_help, method_params
from .merge import load_loras
from .options import Commands, UsageError, add_command, print_json, say, table
from .recording import add_recording, opened_and_recorded

if TYPE_CHECKING:
    from ..learning import Host, Recording, Retention
    from ..lora import Lora
    from ..merging.merged import Merged

_COMPARED = "linear,even,ties,calibrated"
_EXAMPLES = """examples:
  lora-alloy measure mia.safetensors ink.safetensors:0.8 --model sdxl --prompt "mia=photo of mia" \\
      --prompt "ink=ink fox | ink house | ink tree" --recording pair.safetensors
  lora-alloy measure adapter_a adapter_b --model base_model --texts 1=a.txt --texts 2=b.txt --method ties
  lora-alloy measure a.safetensors b.safetensors --model sdxl --recording pair.safetensors --scales 0.8,1,1.2
"""


def add_parser(commands: Commands[argparse.ArgumentParser], argv: list[str]) -> None:
    """Add the command, with the merging options of ``merge``."""
    parser = add_command(
        commands,
        "measure",
        "measure how much of each LoRA a merge keeps",
        "Run the model with each LoRA alone and with a merge, and print what share of each LoRA's effect the "
        "merge keeps: 100 % is the LoRA alone, 0 % is no closer to it than the base model.",
        method_help() + _EXAMPLES,
    )
    add_merging(parser, argv)
    add_recording(parser)
    out = parser.add_argument_group("what to measure")
    out.add_argument(
        "--compare", metavar="METHODS", help=f"methods at their defaults (default: {_COMPARED}, or --method)"
    )
    out.add_argument("--scales", metavar="LIST", help="scales of the whole result, such as 0.8,1,1.2")
    out.add_argument(
        "--merged", action="append", default=[], metavar="FILE", help="a finished merge; repeatable"
    )
    out.add_argument("--json", action="store_true", help="print the figures as JSON")
    out.add_argument("--device", help="device to run on: cpu, cuda, mps, xpu (default: cpu)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Record, measure and print."""
    scales = [args.scale] if args.scales is None else [_number(text) for text in args.scales.split(",")]
    for name in (args.compare or "").split(","):
        if name.strip():
            get_method(name.strip())
    check_params(args)
    loras = load_loras(args)
    from ..formats import load
    from ..learning import retention
    from ..merging.merge import merge

    merges = {Path(file).name: load(file) for file in args.merged}
    host, recording = opened_and_recorded(args, loras)
    rows = {
        title if len(scales) == 1 else f"{title} x {scale:g}": retention(recording, host, make(scale))
        for title, make in _makers(args, loras, host, recording).items()
        for scale in scales
    }
    for name, finished in merges.items():
        rows[name] = retention(recording, host, merge([finished], base=host.base))
    if args.json:
        print_json({title: _plain(seen) for title, seen in rows.items()})
        return
    say(table([["kept of", *recording.labels, "mean", "worst", "base changed"], *map(_row, rows.items())]))
    say("Shares rank settings for the same LoRAs only roughly; look at results before you decide.")


def _makers(
    args: argparse.Namespace, loras: list[Lora], host: Host, recording: Recording
) -> dict[str, Callable[[float], Merged]]:
    """What merges at a scale, by title."""
    if args.compare is None and (args.method or args.combination_type):
        names, params = [args.method or args.combination_type], method_params(args)
    else:
        names, params = (args.compare or _COMPARED).split(","), {}
    return {name: _maker(args, loras, host, recording, name.strip(), params) for name in names}


def _maker(
    args: argparse.Namespace, loras: list[Lora], host: Host, recording: Recording, name: str,
    params: dict[str, Any],
) -> Callable[[float], Merged]:  # fmt: skip
    from ..learning import calibrate
    from ..merging.merge import merge

    if name == "calibrated":
        return lambda scale: calibrate(recording, host, loras, scale=scale, **params)
    matched = recording.match(loras)
    how: dict[str, Any] = {
        "weights": [each.weight for each in recording.loras],
        "blocks": [each.blocks for each in recording.loras],
        "seed": args.seed, "base": host.base, "keep": args.keep, "reader": args.reader,
    }  # fmt: skip
    if name == args.combination_type:
        how |= {"combination_type": name, "svd_rank": args.svd_rank, "svd_clamp": args.svd_clamp}
    else:
        how |= {"method": get_method(name).name, "space": args.space, "rank": args.rank}
    return lambda scale: merge(matched, scale=scale, **how, **params)


def _row(entry: tuple[str, Retention]) -> list[str]:
    title, seen = entry
    changed = "" if seen.keep is None else f"{100 * seen.keep:.1f} %"
    return [
        title,
        *(f"{100 * share:.0f} %" for share in (*seen.loras.values(), seen.mean, seen.worst)),
        changed,
    ]


def _plain(seen: Retention) -> dict[str, Any]:
    return {
        "loras": seen.loras, "mean": seen.mean, "worst": seen.worst, "keep": seen.keep,
        "together": seen.together, "modules": seen.modules,
    }  # fmt: skip


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"--scales takes numbers separated by commas, not {text!r}") from error
