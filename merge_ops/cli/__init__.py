"""The command line ``lora-alloy``: merge, fuse, extract, distill, measure, inspect, resize, recipe,
methods, demo.

Exit codes: 0 for success, 1 for a refusal (the message gives the reason), 2 for wrong usage.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .deferred import deferred


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    with deferred("torch", "numpy"):
        from .commands import run_command
    return run_command(list(sys.argv[1:] if argv is None else argv))
