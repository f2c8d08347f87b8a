"""The ComfyUI columns of ``docs/architectures.md`` are what the checks in ComfyUI counted."""

import json

import pytest

from tests.architectures import table
from tests.architectures.configs import COMFYUI


@pytest.mark.parametrize("architecture", COMFYUI)
def test_counts_in_comfyui_are_fresh(inside, base, architecture):
    """Run ``python -m tests.architectures``."""
    assert inside["checks_architectures"][f"spellings_meet[{architecture}]"] == ""
    counts = json.loads((base / "architectures" / f"{architecture}.json").read_text(encoding="utf-8"))
    told = [
        row[1:] for row in table.columns(table.written(), 0, 1, 2, 3, 4) if row[0] == COMFYUI[architecture][0]
    ]
    assert told == [
        (label, str(n["modules"]), str(n["ours"]), str(n["stock"] or "–")) for label, n in counts.items()
    ]
