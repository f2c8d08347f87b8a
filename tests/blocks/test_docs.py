"""The help page of LoRA Stack says what block strengths do: its selectors, presets and examples."""

import re
from pathlib import Path

import pytest

from merge_ops import BlockStrengths
from merge_ops.blocks import PRESETS
from merge_ops.blocks.presets import VECTORS
from merge_ops.blocks.selectors import WORDS

PAGE = (Path(__file__).parents[2] / "web" / "docs" / "LoraAlloyStack.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## Block strengths\n")[2].partition("\n## ")[0]
EXAMPLES = re.findall(r"^\| `(.+?)` \| `(.+?)` \| ([\d.]+) \|$", SECTION, re.MULTILINE)


@pytest.mark.parametrize(("text", "layer", "strength"), EXAMPLES)
def test_an_example_is_true(text, layer, strength):
    """A row of the last table."""
    assert BlockStrengths.parse(text).factor(layer) == pytest.approx(float(strength))


def test_what_stands_there_can_be_read():
    """The rows of the list, the vector, and every selector and preset that is named; none is forgotten."""
    assert len(EXAMPLES) > 8
    rows = re.findall(r"^<lora:.*:(?:blocks|lbw)=(.*)>$", SECTION, re.MULTILINE)
    assert len(rows) == 3 and all(BlockStrengths.parse(row) for row in rows)
    (vector,) = re.findall(r"`(\d,[\d,]+)`", SECTION)
    assert vector.count(",") + 1 in VECTORS
    named = set(re.findall(r"`([\w.-]+)`", SECTION))
    for word in [word for word in WORDS if word.islower()]:
        assert word in named and BlockStrengths.parse(f"{word}:1"), word
    for preset in PRESETS:
        assert preset in named or re.match(r"(IN|OUT)\d", preset), preset
