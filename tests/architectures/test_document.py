"""``docs/architectures.md`` says what is true: its table is made from these counts."""

import json

import pytest

from tests.architectures import keys, table
from tests.architectures.configs import COMFYUI, DIFFUSERS
from tests.architectures.diffusers_models import modules
from tests.architectures.through_diffusers import count


@pytest.mark.slow
@pytest.mark.parametrize("architecture", DIFFUSERS)
def test_counts_through_diffusers_are_fresh(architecture):
    """Run ``python -m tests.architectures``."""
    title = COMFYUI[architecture][0]
    told = {row[1:] for row in table.columns(table.written(), 0, 1, 2, 5, 6) if row[0] == title}
    found = {(label, str(n), str(met or "–"), by) for label, (n, met, by) in count(architecture).items()}
    assert told == found


@pytest.mark.parametrize("architecture", DIFFUSERS)
def test_module_lists_are_diffusers_own(architecture):
    """``modules.json`` has every layer of the real class."""
    assert keys.shapes(architecture, "diffusers") == modules(architecture)


def test_packed_lists_unpack():
    """Names that differ in a number, in shape, or not at all, survive packing."""
    listed = {"a.0.b": (2, 3), "a.1.b": (2, 3), "a.3.b": (4, 3), "x": (1, 1, 3, 3), "a.0.c.1": (5, 5)}
    assert keys.unpacked(json.loads(json.dumps(keys.packed(listed)))) == listed
