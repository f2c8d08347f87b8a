"""Parsing a command line, running its command, and turning errors into messages and exit codes."""

from __future__ import annotations

import argparse
import sys

from ..errors import MergeError, did_you_mean, escaped
from ..methods.registry import METHODS
from ..version import __version__
from . import demo, distill, extract, fuse, inspect, measure, merge, methods, recipe, resize
from .how import expand_loras
from .options import UsageError, in_options, say

_COMMANDS = (merge, fuse, extract, distill, measure, inspect, resize, recipe, methods, demo)
_EPILOG = """examples:
  lora-alloy merge ink.safetensors:0.8 mia.safetensors:0.6 --method ties --density 0.5 -o both.safetensors
  lora-alloy fuse base_model adapter_a:0.7 adapter_b:0.3 -o fused_model
  lora-alloy extract tuned.safetensors base.safetensors --rank 32 -o tuned_lora.safetensors
  lora-alloy distill ink.safetensors mia.safetensors --model sdxl --prompt ink="ink fox" --prompt mia="mia" \
      -o both.safetensors
  lora-alloy inspect ink.safetensors mia.safetensors
  lora-alloy resize both.safetensors --rank 16 -o small.safetensors
  lora-alloy recipe run both.safetensors --folder loras -o again.safetensors
  lora-alloy methods
  lora-alloy demo -o demo-output

Run 'lora-alloy COMMAND --help' for the options of a command.
"""


def run_command(argv: list[str]) -> int:
    """Run one command and return its exit code."""
    args = _parsed(argv)
    try:
        if "loras" in vars(args):
            expand_loras(args)
        args.run(args)
    except UsageError as error:
        say(f"lora-alloy: {error}", sys.stderr)
        return 2
    except MergeError as error:
        say(f"lora-alloy: {in_options(str(error))}", sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output needs no more of it
        sys.stderr.close()
        return 0
    except OSError as error:
        say(f"lora-alloy: {error.strerror or error}: {error.filename or ''}".rstrip(": "), sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("lora-alloy: interrupted, nothing was written", sys.stderr)
        return 130
    return 0


def _parsed(argv: list[str]) -> argparse.Namespace:
    """Parse the arguments; a mistake ends the process with exit code 2 and a usage message."""
    parser = argparse.ArgumentParser(
        prog="lora-alloy",
        description="Merge LoRAs exactly, quickly and repeatably.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lora-alloy {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for command in _COMMANDS:
        command.add_parser(commands, argv)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        chosen = getattr(args, "parser", commands.choices[args.command])  # recipe has parsers of its own
        options = chosen._option_string_actions
        hint = _methods_with(unknown[0], args) or did_you_mean(unknown[0], options)
        parser.error(f"{args.command} has no option {escaped(unknown[0])!r} here{hint}")
    return args


def _methods_with(option: str, args: argparse.Namespace) -> str:
    """What to say of an option that other methods have; empty if it is no method's."""
    if not hasattr(args, "method"):
        return ""
    name = option.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
    methods = [m.name for m in METHODS.values() if any(param.name == name for param in m.params)]
    if not methods:
        return ""
    chosen = args.method or args.combination_type or "linear"
    return f": it is not an option of {chosen}; choose --method {', '.join(methods)}"
