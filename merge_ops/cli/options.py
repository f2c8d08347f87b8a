"""Options and output that several commands share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from ..errors import MergeError, ParameterError
from ..merging.merged import Merged
from ..methods.registry import Param
from ..saving import FORMATS, SaveReport

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

Commands = argparse._SubParsersAction  # the name argparse gives to what add_subparsers returns


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add what every command that writes a LoRA takes."""
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output", metavar="FILE", help="the .safetensors file (or PEFT folder) to write")
    out.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="auto: as the first LoRA")
    out.add_argument("--dtype", choices=DTYPES, default="float16", help="of the file (default: float16)")
    out.add_argument("--overwrite", action="store_true", help="replace an existing file")
    out.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    out.add_argument("--strict", action="store_true", help="refuse what would be a warning, or left out")
    out.add_argument("--json", action="store_true", help="print the report as JSON")
    out.add_argument("--device", help="where to compute: cpu, cuda, mps, xpu (default: cpu)")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add what every command that reads LoRAs takes."""
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read .pt, .bin, .ckpt and .pth files too: their tensors only, no code from them is run",
    )


def add_base(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option for the base model, which some kinds of adapters need."""
    parser.add_argument(
        "--base",
        metavar="PATH",
        help="the base model (a .safetensors file or a folder), needed for DoRA, GLoRA, OFT, BOFT and (IA)3",
    )


def add_param(parser: argparse._ArgumentGroup, param: Param) -> None:
    """Add the flag of one parameter of a method; its value is checked where all surfaces are checked."""
    flag = f"--{param.name.replace('_', '-')}"
    text = f"{param.help} (default: {param.default})"
    if param.type is bool:
        action = argparse.BooleanOptionalAction
        parser.add_argument(flag, dest=param.name, action=action, default=argparse.SUPPRESS, help=text)
        return
    parser.add_argument(
        flag,
        dest=param.name,
        type=param.type,
        choices=param.choices or None,
        default=argparse.SUPPRESS,
        help=text,
    )


def chosen_device(name: str | None) -> torch.device | None:
    """The torch device of that name, or a clear error."""
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ParameterError(
            f"the device {name!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
    return device


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error, if that is a terminal."""
    with tqdm(desc=title, unit="layer", disable=None, leave=False) as bar:

        def show(done: int, total: int, _layer: str) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def print_json(value: Any) -> None:
    """Print a report as JSON that any reader takes."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_saved(report: SaveReport) -> None:
    """Print where the file is and how exact it is."""
    print(f"wrote {report.path} ({report.format}, {report.size / 1e6:.2f} MB), read back and compared")
    kept = [layer.energy_kept for layer in report.layers]
    print(f"  relative error: total {report.total_error:.2e}, worst layer {report.largest_error:.2e}")
    if min(kept) < 0.99995:
        print(f"  energy kept by truncating: mean {sum(kept) / len(kept):.1%}, worst layer {min(kept):.1%}")


def refuse_odd(merged: Merged) -> None:
    """What ``--strict`` does: an error for the first warning, or the first entry that is left out."""
    left_out = [f"{name} is left out ({why})" for lora in merged.loras for name, why in lora.unmerged.items()]
    found = [*merged.outline.warnings, *left_out]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise MergeError(f"{found[0]}{more}; --strict refuses that, and nothing was written")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns; the first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
