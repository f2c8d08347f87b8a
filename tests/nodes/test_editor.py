"""The graph editor in headless Chromium: the example workflows, in the editor's own format."""

import json

import pytest

from tests.nodes.pack import ROOT, example

EXAMPLES = sorted(path for path in (ROOT / "example_workflows").glob("*.json") if "_api" not in path.name)


def inputs_of(prompt):
    """What a prompt sets, without the titles."""
    return {node: (value["class_type"], value["inputs"]) for node, value in prompt.items()}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_those_of_the_api(editor, path):
    """Each loads without a word and would be queued as the example of the same name in API format."""
    editor.problems.clear()
    editor.load(json.loads(path.read_text(encoding="utf-8")))
    queued = inputs_of(editor.prompt())
    posted = inputs_of(json.loads(path.with_stem(f"{path.stem}_api").read_text(encoding="utf-8")))
    assert queued.keys() == posted.keys()
    for node, (kind, inputs) in posted.items():
        assert queued[node][0] == kind
        assert inputs.items() <= queued[node][1].items()  # the editor also sends what is at its default
    assert not editor.ours()


def test_queueing_from_the_page(editor, server):
    """The one-node example, at the size of the tiny model, queued from the page."""
    path = ROOT / "example_workflows" / "one_node_api.json"
    editor.load(example(path))
    before = set(server.get("/history"))
    editor.page.evaluate("() => window.app.queuePrompt(0, 1)")
    for _ in range(1200):
        new = set(server.get("/history")) - before
        if new:
            break
        editor.page.wait_for_timeout(100)
    entry = server.get("/history")[new.pop()]
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert "sd15_b" in entry["prompt"][2]["10"]["inputs"]["loras"]
