"""``lora-alloy inspect``: show what LoRA files contain, and how they relate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..analysis.view_names import SPECTRUM, VIEWS
from ..errors import ParameterError
from ..saving.file_names import check_file
from .options import Commands, UsageError, add_command, add_reading, print_json, read_loras, say, table

if TYPE_CHECKING:
    from ..analysis.study import Study

_SHOWN_KEYS = 20  # lines of metadata in the text; --json prints all
_EXAMPLES = """examples:
  lora-alloy inspect ink.safetensors
  lora-alloy inspect ink.safetensors mia.safetensors --json
  lora-alloy inspect ink.safetensors mia.safetensors --plot both.png --view sign_conflict
"""


def add_parser(commands: Commands[argparse.ArgumentParser], _argv: list[str]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "inspect",
        "show what LoRA files contain, and how they relate",
        "Show format, layers, ranks, scale, norm and metadata. For two or more LoRAs also compare each "
        "block: the cosine of the deltas, and the share of entries with opposite signs. Short advice says "
        "what this means for a merge, and which rank would be enough.",
        _EXAMPLES,
    )
    parser.add_argument(
        "loras",
        nargs="+",
        metavar="LORA",
        help="a LoRA file or PEFT folder, or a pattern or folder of several",
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw a picture and save it as this .png file (needs Pillow)"
    )
    parser.add_argument(
        "--view", choices=VIEWS, help=f"what to draw (default: {VIEWS[0]}, or {SPECTRUM} for one LoRA)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing picture")
    add_reading(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load, compare and print."""
    if args.view and not args.plot:
        raise UsageError("--view needs --plot FILE.png, the picture to write")
    if args.plot:
        check_file(Path(args.plot), ".png", args.overwrite)
    loras = read_loras(args, args.loras)
    from ..analysis.study import study

    result = study(loras)
    if args.plot:
        _plot(result, args.view, Path(args.plot))
    if args.json:
        print_json(result.to_dict())
        return
    for fact in result.facts:
        _print_lora(fact)
    _print_relations(result)
    for sentence in result.advice:
        say(sentence)


def _plot(result: Study, view: str | None, path: Path) -> None:
    try:
        from ..analysis.plots import draw
    except ModuleNotFoundError as error:
        raise ParameterError("pictures need Pillow; run pip install pillow, or leave out --plot") from error
    draw(result, view).save(path, optimize=True)


def _print_relations(result: Study) -> None:
    rows = [row for relation in result.relations for row in relation.blocks]
    if not rows:
        return
    heading = ["block", "first", "second", "layers", "cosine", "sign conflict"]
    lines = [
        [r.block, r.first, r.second, str(r.layers), f"{r.cosine:+.4f}", f"{r.sign_conflict:.1%}"]
        for r in rows
    ]
    say(table([heading, *lines]))
    say()


def _print_lora(fact: dict[str, Any]) -> None:
    from ..analysis.facts import printable

    say(f"{fact['name']}: {fact['format']}, {fact['layers']} layers, norm {fact['norm']:.4g}")
    for key in ("components", "kinds", "ranks", "scales", "dtypes"):
        if fact[key]:
            say(f"  {key}: " + ", ".join(f"{name} ({count})" for name, count in fact[key].items()))
    for name, what in fact["whole"].items():
        say(f"  whole weight: {printable(name)} ({what})")
    for name, reason in fact["unmerged"].items():
        say(f"  not merged: {printable(name)} ({reason})")
    for warning in fact["warnings"]:
        say(f"  warning: {warning}")
    for key, value in list(fact["metadata"].items())[:_SHOWN_KEYS]:
        say(f"  {printable(key)} = {value}")
    if len(fact["metadata"]) > _SHOWN_KEYS:
        say(f"  ... and {len(fact['metadata']) - _SHOWN_KEYS} more metadata keys")
    say()
