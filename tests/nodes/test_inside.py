"""The checks of ``inside.py``, each a test: patched weights in the real ComfyUI, in one process."""

import re
from pathlib import Path

import pytest

from tests.architectures.configs import COMFYUI

FILES = (
    "comfy_inside.py",
    "checks_weights.py",
    "checks_nodes.py",
    "checks_bad.py",
    "checks_patches.py",
    "checks_kinds.py",
    "checks_based.py",
    "checks_recipe.py",
    "checks_architectures.py",
    "checks_blocks.py",
    "checks_sweep.py",
)
SOURCE = "\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in FILES)
MODELS = re.search(r"^MODELS = \((.*)\)", SOURCE, re.MULTILINE)[1].replace('"', "").split(", ")
EACH = {"name": MODELS, "architecture": list(COMFYUI), "": []}
CHECKS = [
    label
    for name, each in re.findall(r"^ *@check\n *def (\w+)\((\w*)", SOURCE, re.MULTILINE)
    for label in ([f"{name}[{value}]" for value in EACH[each]] or [name])
]


@pytest.mark.parametrize("label", CHECKS)
def test_inside_comfyui(inside, label):
    """Nothing is wrong, and the check did run."""
    assert label in inside
    assert not inside[label], inside[label]
