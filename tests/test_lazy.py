"""Packages that import their public names when they are used: the names are where type checkers see them."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest

import merge_ops
from merge_ops import lazy

ROOT = Path(__file__).parents[1]
PACKAGES = [
    ".".join(path.parent.relative_to(ROOT).parts)
    for path in sorted((ROOT / "merge_ops").rglob("__init__.py"))
    if "import_when_used(" in path.read_text(encoding="utf-8")
]
# names of functions that are also those of the submodules they are in
SHARED = {
    "merge_ops.extracting": ["extract"],
    "merge_ops.learning": ["calibrate", "distill", "moments", "record"],
    "merge_ops.merging": ["merge"],
    "merge_ops.saving": ["save"],
}


def declared(package):
    """What stands below ``if TYPE_CHECKING``: ``{name: submodule}``."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {alias.name: node.module for node in block.body for alias in node.names}


@pytest.mark.parametrize("package", PACKAGES)
def test_names_are_those_that_type_checkers_see(package):
    module = importlib.import_module(package)
    homes = declared(package)
    assert module.__dict__["_home_of"] == homes
    assert set(homes) <= set(module.__all__) <= set(dir(module))
    for name, home in homes.items():
        value = getattr(module, name)
        assert value is vars(importlib.import_module(f"{package}.{home}"))[name]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.parametrize("first", ["import {0}", "import {0}.{1}", "from {0} import {1}"])
def test_a_function_keeps_the_name_of_its_submodule(first):
    """Whichever of the two is imported first."""
    pairs = [(package, name) for package, names in SHARED.items() for name in names]
    code = "\n".join(f"{first.format(*pair)}\nprint({'.'.join(pair)}.__name__)" for pair in pairs)
    code = "\n".join(f"import {package}" for package in SHARED) + "\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == [name for _, name in pairs]
    for package, name in pairs:
        assert isinstance(getattr(importlib.import_module(package), name), FunctionType)


def test_submodules_are_attributes():
    assert merge_ops.formats.read is sys.modules["merge_ops.formats.read"]
    assert merge_ops.learning is importlib.import_module("merge_ops.learning")


def test_an_import_that_fails_inside_a_submodule_is_no_missing_attribute(tmp_path, monkeypatch):
    package = tmp_path / "pack_of_two"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "needy.py").write_text("import a_package_that_is_not_there\nvalue = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("pack_of_two")
    lazy.import_when_used("pack_of_two", {"needy": ["value"]})
    for name in ("value", "needy"):
        with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
            getattr(module, name)
    assert "value" in dir(module)
