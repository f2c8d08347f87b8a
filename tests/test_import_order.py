"""The rooms of the house: the import graph is drawn from the sources, has no circles and points one way."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# a room may import from those above it in this list, never from those below
FLOORS = (
    (
        "merge_ops.errors",
        "merge_ops.lazy",
        "merge_ops.progress",
        "merge_ops.readers",
        "merge_ops.version",
        "merge_ops.steady",
    ),
    ("merge_ops.room", "merge_ops.patterns", "merge_ops.notes"),
    ("merge_ops.layer",),
    ("merge_ops.lora",),
    ("merge_ops.names",),
    ("merge_ops.adapters", "merge_ops.methods", "merge_ops.blocks"),
    ("merge_ops.formats",),
    ("merge_ops.merging",),
    ("merge_ops.recipes", "merge_ops.analysis", "merge_ops.extracting"),
    ("merge_ops.saving",),
    ("merge_ops.learning",),
    ("merge_ops.models",),
    ("merge_ops",),  # the public names
    ("merge_ops.demo",),
    ("merge_ops.cli",),
    ("merge_ops.__main__",),
    ("nodes.values",),
    ("nodes.model",),
    ("nodes.model.files",),
    ("nodes.model.places",),
    ("nodes.model.merges",),
    ("nodes.model.patches",),
    ("nodes.model.loaded", "nodes.model.learning"),
    ("nodes.model.jobs",),
    ("nodes.routes",),
    ("nodes",),
)
# imports inside a function that go upwards, each with the reason beside it in the source
UPWARDS = {("merge_ops.merging.bind", "merge_ops.models.base_weights")}


def modules():
    """Module name to its file, for the library and the nodes."""
    found = {}
    for folder in ("merge_ops", "nodes"):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name, path, known):
    """``(imported module, whether inside a function)`` for each import of the project's own modules."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        parts = package.split(".")
        start = [*parts[: len(parts) - node.level + 1], *filter(None, (node.module or "").split("."))]
        for alias in node.names:
            full = ".".join([*start, alias.name])
            target = full if full in known else ".".join(start)
            if target in known and target != name:
                yield target, id(node) in inner


def room_of(module):
    """The longest entry of ``FLOORS`` that a module is in, and its floor."""
    fitting = [
        (len(room), floor, room)
        for floor, rooms in enumerate(FLOORS)
        for room in rooms
        if module == room or (room != "merge_ops" and module.startswith(f"{room}."))
    ]
    assert fitting, f"{module} is in no room; give it a place in FLOORS"
    return max(fitting)[1:]


KNOWN = modules()
GRAPH = {name: list(imports(name, path, KNOWN)) for name, path in KNOWN.items()}


def test_no_circles():
    """Not even through imports inside functions, the listed ones aside."""
    edges = {
        name: {target for target, _ in targets if (name, target) not in UPWARDS}
        for name, targets in GRAPH.items()
    }
    assert list(TopologicalSorter(edges).static_order())


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_downwards_only(name):
    """A module imports from its own room or from rooms above it in the list."""
    floor, room = room_of(name)
    for target, inside in GRAPH[name]:
        below, other = room_of(target)
        if (name, target) in UPWARDS:
            assert inside, f"{name} may import {target} inside a function only"
            continue
        assert other == room or below < floor, f"{name} imports {target}, which is above it ({other})"


def test_listed_exceptions_exist():
    """An exception that no source needs any more is taken off the list."""
    assert {(name, target) for name, targets in GRAPH.items() for target, _ in targets} >= UPWARDS
