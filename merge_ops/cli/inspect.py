"""``lora-alloy inspect``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from ..analyze import compare, describe, printable
from ..formats import load
from .options import Commands, print_json, table

_SHOWN_KEYS = 20  # lines of metadata in the text; the JSON has all
_EXAMPLES = """examples:
  lora-alloy inspect ink.safetensors
  lora-alloy inspect ink.safetensors mia.safetensors --json
"""


def add_parser(commands: Commands[argparse.ArgumentParser], _argv: list[str]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "inspect",
        help="show what LoRA files hold, and how they relate",
        description="Show format, layers, ranks, scale, norm and metadata; for two or more LoRAs also how "
        "they relate in each block: cosine of the deltas, and share of entries with opposite signs.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("loras", nargs="+", metavar="LORA", help="a file or PEFT folder")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Read and print."""
    loras = [load(path) for path in args.loras]
    facts = [describe(lora) for lora in loras]
    rows = compare(loras)
    if args.json:
        print_json({"loras": facts, "comparison": [asdict(row) for row in rows]})
        return
    for fact in facts:
        _print_lora(fact)
    if rows:
        heading = ["block", "first", "second", "layers", "cosine", "sign conflict"]
        lines = [
            [r.block, r.first, r.second, str(r.layers), f"{r.cosine:+.4f}", f"{r.sign_conflict:.1%}"]
            for r in rows
        ]
        print(table([heading, *lines]))
    elif len(loras) > 1:
        print("these LoRAs share no layer: they are for different models, or for different parts of one")


def _print_lora(fact: dict[str, Any]) -> None:
    print(f"{fact['name']}: {fact['format']}, {fact['layers']} layers, norm {fact['norm']:.4g}")
    for key in ("components", "kinds", "ranks", "scales", "dtypes"):
        print(f"  {key}: " + ", ".join(f"{name} ({count})" for name, count in fact[key].items()))
    for name, reason in fact["unmerged"].items():
        print(f"  not merged: {printable(name)} ({reason})")
    for warning in fact["warnings"]:
        print(f"  warning: {warning}")
    for key, value in list(fact["metadata"].items())[:_SHOWN_KEYS]:
        print(f"  {printable(key)} = {value}")
    if len(fact["metadata"]) > _SHOWN_KEYS:
        print(f"  ... and {len(fact['metadata']) - _SHOWN_KEYS} more keys of metadata")
    print()
