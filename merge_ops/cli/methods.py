"""``lora-alloy methods``: list the merge methods, as text, JSON or the table of the README."""

from __future__ import annotations

import argparse

from ..methods.peft_names import COMBINATION_TYPES
from ..methods.registry import METHODS, Param
from .options import Commands, add_command, print_json, say, table


def add_parser(commands: Commands[argparse.ArgumentParser], _argv: list[str]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "methods",
        "list the merge methods and their parameters",
        "List the merge methods with their parameters, and PEFT's combination types.",
        "examples:\n  lora-alloy methods\n  lora-alloy methods --json\n",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print as JSON")
    how.add_argument("--markdown", action="store_true", help="print as the table of the README")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the methods."""
    if args.json:
        print_json([_as_dict(name) for name in METHODS])
    elif args.markdown:
        say(markdown())
    else:
        rows = [["method", "parameters (defaults)", "what it does"]]
        rows += [[m.name, _defaults(m.params), m.summary] for m in METHODS.values()]
        say(table(rows))
        say("\nPEFT's combination types (--combination-type):\n")
        rows = [["combination type", "method", "space", "result"]]
        rows += [
            [name, row.method, row.space, "truncated to svd_rank" if row.truncated else "not truncated"]
            for name, row in COMBINATION_TYPES.items()
        ]
        say(table(rows))


def markdown() -> str:
    """Return the README's table of methods."""
    lines = [
        "| method | parameters (defaults) | what it does | limits | paper |",
        "| --- | --- | --- | --- | --- |",
    ]
    for m in METHODS.values():
        paper = f"[{m.paper}](https://arxiv.org/abs/{m.paper.removeprefix('arXiv:')})"
        limits = "; ".join(m.breaks.values()) or "none"
        lines.append(f"| `{m.name}` | {_defaults(m.params) or 'none'} | {m.summary} | {limits} | {paper} |")
    return "\n".join(lines)


def _defaults(params: tuple[Param, ...]) -> str:
    return ", ".join(f"{p.name}={p.default}" for p in params)


def _as_dict(name: str) -> dict[str, object]:
    method = METHODS[name]
    params = [
        {
            "name": p.name,
            "type": p.type.__name__,
            "default": p.default,
            "min": p.min,
            "max": p.max,
            "choices": list(p.choices),
            "help": p.help,
        }
        for p in method.params
    ]
    return {
        "name": name,
        "title": method.title,
        "summary": method.summary,
        "paper": method.paper,
        "breaks": method.breaks,
        "params": params,
    }
