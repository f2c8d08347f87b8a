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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Draw the grid and print the table."""
    try:
        from ..demo import run as run_demo
    except ModuleNotFoundError as error:
        raise ParameterError(f"the demo needs {error.name}; pip install 'lora-alloy[demo]'") from error
    run_demo(Path(args.output))
