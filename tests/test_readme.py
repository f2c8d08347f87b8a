"""The README says what the code does: its method table is made from the registry, its commands exist."""

import re
from pathlib import Path

import merge_ops
from merge_ops.cli.methods import markdown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_method_table_is_fresh():
    """Run ``lora-alloy methods --markdown`` and paste its output between the marks."""
    found = re.search(r"<!-- methods: .*? -->\n(.*?)\n<!-- /methods -->", README, re.DOTALL)
    assert found and found[1].strip() == markdown()


def test_every_combination_type_is_named():
    """All eleven PEFT names are in the page about methods."""
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in merge_ops.COMBINATION_TYPES)


def test_make_targets_exist():
    """Each ``make`` command of the README is a target."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([\w-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_one_version():
    """pyproject.toml and the library agree."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{merge_ops.__version__}"' in project
