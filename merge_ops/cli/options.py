"""Options and output that several commands share."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import MergeError, ParameterError, did_you_mean, escaped
from ..formats.paths import is_folder
from ..methods.registry import Param
from ..saving.file_names import FORMATS, check_place

if TYPE_CHECKING:
    import torch

    from ..lora import Lora
    from ..merging.merged import Merged
    from ..saving import SaveReport

DTYPES = ("float16", "bfloat16", "float32")

Commands = argparse._SubParsersAction  # argparse's name for the type that add_subparsers returns

# arguments of the library that are options of the command line too, as error messages spell them
_ARGUMENT = re.compile(r"\b(adapter|base|dtype|format|keep|space)=(?:torch\.)?(?:'([^']*)'|(\w+))?")


class UsageError(ParameterError):
    """The arguments contradict each other or lack something; the command exits with 2, not 1."""


def say(text: str = "", file: TextIO | None = None) -> None:
    """Print what a user reads, on standard output by default, with what cannot be seen written out."""
    print(escaped(text), file=file)


def add_command(
    commands: Commands[argparse.ArgumentParser], name: str, summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """Add a command; its epilog, which has the examples, keeps its line breaks."""
    return commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, 90),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that writes a LoRA."""
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output", metavar="FILE", help="the .safetensors file (or PEFT folder) to write")
    out.add_argument(
        "--format",
        choices=("auto", *FORMATS),
        default="auto",
        help="format of the file (default: auto, the format of the first LoRA)",
    )
    out.add_argument(
        "--dtype", choices=DTYPES, default="float16", help="dtype of the file (default: float16)"
    )
    out.add_argument("--overwrite", action="store_true", help="replace an existing file")
    out.add_argument("--dry-run", action="store_true", help="show what would be done, and write nothing")
    out.add_argument(
        "--strict", action="store_true", help="fail on any warning, and if anything would be left out"
    )
    out.add_argument("--json", action="store_true", help="print the report as JSON")
    out.add_argument("--device", help="device to compute on: cpu, cuda, mps, xpu (default: cpu)")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that reads LoRAs."""
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="also read .pt, .bin, .ckpt and .pth files: only their tensors, without running code from them",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[LORA=]NAME",
        help="which adapter to read of a file whose keys name several, as x.lora_A.NAME.weight; for all "
        "LoRAs, or for one given by name or position (1, 2, ...); repeatable",
    )


def read_loras(args: argparse.Namespace, paths: Sequence[str]) -> list[Lora]:
    """Read LoRAs as the options of ``add_reading`` say.

    Raises:
        ParameterError: if ``--adapter`` names no LoRA among the paths.
        LoraFormatError: if one cannot be read.
    """
    chosen: dict[int | None, str] = {}
    for option in args.adapter:
        lora, _, name = option.rpartition("=")
        places = [i for i, path in enumerate(paths) if lora in (path, Path(path).name, Path(path).stem)]
        if not places and lora.isdigit() and 0 < int(lora) <= len(paths):
            places = [int(lora) - 1]
        if lora and not places:
            hint = did_you_mean(lora, [Path(path).stem for path in paths])
            raise ParameterError(f"--adapter names no LoRA: {lora!r}{hint}")
        chosen |= dict.fromkeys(places if lora else [None], name)
    check_paths(paths)
    from ..formats import load

    shared = chosen.get(None)
    return [
        load(path, adapter=chosen.get(i, shared), allow_pickle=args.allow_pickle)
        for i, path in enumerate(paths)
    ]


def check_paths(paths: Sequence[str]) -> None:
    """Refuse paths of LoRAs at which there is nothing, before anything is read.

    Raises:
        LoraFormatError: for the first one.
    """
    for path in paths:
        is_folder(Path(path))


def add_base(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option for the base model, which some kinds of adapters need."""
    parser.add_argument(
        "--base",
        metavar="PATH",
        help="base model (a .safetensors file or a folder); needed for DoRA, GLoRA, OFT, BOFT and (IA)3",
    )


def add_param(parser: argparse._ArgumentGroup, param: Param) -> None:
    """Add the option of one method parameter; the library checks its value."""
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


@contextmanager
def progress_bar(title: str, unit: str = "layer") -> Iterator[Callable[[int, int, str], None]]:
    """Show a progress bar on standard error if that is a terminal, and yield the callback that moves it."""
    from tqdm import tqdm

    with tqdm(desc=title, unit=unit, disable=None, leave=False) as bar:

        def show(done: int, total: int, _layer: str) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def dtype_of(name: str) -> torch.dtype:
    """Return torch's dtype of one of the names ``DTYPES``."""
    import torch

    return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def print_json(value: Any) -> None:
    """Print a report as strictly valid JSON."""
    say(json.dumps(value, indent=2, allow_nan=False))


def print_saved(report: SaveReport) -> None:
    """Print where the file is, and how exact it is."""
    say(f"wrote {report.path} ({report.format}, {report.size / 1e6:.2f} MB), read back and compared")
    say(f"  {'warning: ' if report.kept.is_low else ''}{report.kept.sentence()}")
    say(f"  relative error: total {report.total_error:.2e}, worst layer {report.largest_error:.2e}")


def require_output(args: argparse.Namespace) -> None:
    """Refuse a command that would write nothing and is not a dry run, or that could write nothing there.

    Raises:
        UsageError: if there is no output.
        ParameterError: for a place that cannot be written to, whatever the format.
    """
    if not args.output and not args.dry_run:
        raise UsageError("give the output with -o FILE, or use --dry-run")
    if args.output and "overwrite" in vars(args):
        check_place(Path(args.output), args.overwrite)


def refuse_output(args: argparse.Namespace, loras: Sequence[Lora]) -> None:
    """Refuse the output options before anything is computed, as saving would afterwards.

    Raises:
        ParameterError: as ``merge_ops.save`` does for what is wrong with the path.
        MergeError: if the format cannot hold the layers.
    """
    if not args.output:
        return
    from ..names.line_up import name_alike
    from ..saving import check_output

    alike = name_alike(list(loras))
    layers = {name for lora in alike for name in (*lora.layers, *lora.whole_weights)}
    check_output(
        Path(args.output), alike, args.format, args.rank, dtype_of(args.dtype), overwrite=args.overwrite,
        layers=() if vars(args).get("blocks") else sorted(layers),  # blocks may leave layers out
    )  # fmt: skip


def in_options(message: str) -> str:
    """Return a message of the library with its arguments spelled as options: ``base=`` is ``--base``."""
    return _ARGUMENT.sub(lambda found: f"--{found[1]} {found[2] or found[3] or ''}".rstrip(), message)


def refuse_warnings(merged: Merged) -> None:
    """Raise an error for the first warning, or the first entry that is left out, as ``--strict`` asks.

    Raises:
        MergeError: naming it, and how many more there are.
    """
    left_out = [f"{name} is left out ({why})" for lora in merged.loras for name, why in lora.unmerged.items()]
    problems = [*merged.outline.warnings, *left_out]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise MergeError(f"{problems[0]}{more}; --strict does not allow this, and nothing was written")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of text as aligned columns; the first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
