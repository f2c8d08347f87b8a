"""The example workflows as a reader sees them: wires that can be followed, a note, seeds that stay."""

import json
from itertools import combinations, pairwise

import pytest

from tests.nodes.layout import LAYOUTS, TITLE
from tests.nodes.pack import ROOT

FOLDER = ROOT / "example_workflows"
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
# a node with two outputs that both go to two others: some crossings cannot be avoided
CROSSINGS = {
    "Compare two methods": 1,
    "Extract a LoRA from a model": 3,
    "Merge for the text encoder only": 1,
    "Sweep settings in a grid": 1,
}
STEPS = 24


def workflow(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def box(node):
    """Left, top, right, bottom, with the title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def slot(node, side, place):
    """Where a wire meets a node, as the canvas draws it; the inputs of widgets have no place of their own."""
    (x, y), (width, _) = node["pos"], node["size"]
    if side == "inputs":
        place = [i for i, each in enumerate(node["inputs"]) if not each.get("widget")].index(place)
    return (x if side == "inputs" else x + width), y + (place + 0.7) * 20


def curve(start, end):
    """Points of the canvas's curve from one point to the next: it leaves and comes level."""
    bend = ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5 / 4
    through = [start, (start[0] + bend, start[1]), (end[0] - bend, end[1]), end]
    for i in range(STEPS + 1):
        t = i / STEPS
        weights = [(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3]
        yield tuple(
            sum(w * point[axis] for w, point in zip(weights, through, strict=True)) for axis in (0, 1)
        )


def wires(graph):
    """``{(source, slot, target, slot): points}`` of the links, through the points that they are led by."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    points = {point["id"]: point for point in graph["extra"].get("reroutes", ())}
    last = {each["id"]: each["parentId"] for each in graph["extra"].get("linkExtensions", ())}
    found = {}
    for link, source, output, target, entry, _ in graph["links"]:
        through, point = [slot(nodes[target], "inputs", entry)], last.get(link)
        while point is not None:
            through.append(tuple(points[point]["pos"]))
            point = points[point].get("parentId")
        through.append(slot(nodes[source], "outputs", output))
        pieces = [list(curve(a, b)) for a, b in pairwise(reversed(through))]
        found[source, output, target, entry] = [at for piece in pieces for at in piece]
    return found


def cross(a, b, c, d):
    """Whether the lines from a to b and from c to d meet."""

    def side(p, q, r):
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def crossings(graph):
    """The pairs of wires from different outputs that cross."""
    return [
        (one, other)
        for (one, first), (other, second) in combinations(wires(graph).items(), 2)
        if one[:2] != other[:2] and any(cross(*a, *b) for a in pairwise(first) for b in pairwise(second))
    ]


def covered(graph):
    """Wires that run under a node other than those at their ends."""
    return [
        (wire, node["id"])
        for wire, points in wires(graph).items()
        for node in graph["nodes"]
        if node["id"] not in (wire[0], wire[2])
        for left, top, right, bottom in [box(node)]
        if any(left < x < right and top < y < bottom for x, y in points)
    ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_wires_can_be_followed(name):
    """None runs under a node, and none crosses another where that can be avoided; nodes lie apart."""
    graph = workflow(name)
    assert not covered(graph)
    assert len(crossings(graph)) == CROSSINGS.get(name, 0), crossings(graph)
    for one, other in combinations(graph["nodes"], 2):
        a, b = box(one), box(other)
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (one["id"], other["id"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_note_says_what_to_do(name):
    """In the first column, with steps; what its title says is not what the file's name says."""
    graph = workflow(name)
    (note,) = [node for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    assert note["pos"][0] == min(node["pos"][0] for node in graph["nodes"])
    assert note["title"] == LAYOUTS[name].title != name
    assert note["widgets_values"][0] == LAYOUTS[name].note and "\n1. " in LAYOUTS[name].note


def test_titles_are_plain():
    """The editor shows the file's name as title and description of a template."""
    names = {path.stem for path in FOLDER.glob("*.json")}
    assert names == set(LAYOUTS) and {path.stem for path in FOLDER.glob("*.jpg")} == names
    for name in names:
        assert name[0].isupper() and "_" not in name and "." not in name


@pytest.mark.parametrize("path", [*sorted(FOLDER.glob("*.json")), *BLUEPRINTS], ids=lambda path: path.stem)
def test_seeds_stay(path):
    """A workflow that is queued again gives the same; two pictures to compare come from the same seed."""
    text = path.read_text(encoding="utf-8")
    graph = json.loads(text)
    for node in [
        *graph["nodes"],
        *(n for s in graph.get("definitions", {}).get("subgraphs", ()) for n in s["nodes"]),
    ]:
        if node["type"] == "KSampler":
            assert node["widgets_values"][1] == "fixed"
    assert '"fixed"' in text or "KSampler" not in text
    for wrong in ('"randomize"', '"increment"', '"decrement"'):
        assert wrong not in text
