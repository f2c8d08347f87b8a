"""The graph editor in headless Chromium: the example workflows, in the editor's own format."""

import json

import pytest

from tests.nodes.editor import BLUEPRINT
from tests.nodes.pack import LIST, ROOT, example

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))

FOUND = """(name) => [...document.querySelectorAll("[role=option], [role=listbox] *")]
    .some((element) => element.textContent.includes(name))"""
# a checkpoint, a latent and a saver around the one node of a graph, at the size of the tiny model
SURROUND = """(loras) => {
    const [made] = window.app.graph.nodes
    const set = (node, values) => node.widgets.forEach((widget) => {
        if (widget.name in values) widget.value = values[widget.name]
    })
    const add = (type, values) => {
        const node = window.LiteGraph.createNode(type)
        window.app.graph.add(node)
        set(node, values)
        return node
    }
    const place = (name) => made.inputs.findIndex((input) => input.name === name)
    const checkpoint = add("CheckpointLoaderSimple", { ckpt_name: "tiny_sd15.safetensors" })
    const latent = add("EmptyLatentImage", { width: 64, height: 64, batch_size: 1 })
    const outputs = ["model", "clip", "vae"]
    outputs.forEach((name, index) => checkpoint.connect(index, made, place(name)))
    latent.connect(0, made, place("latent_image"))
    made.connect(0, add("SaveImage", { filename_prefix: "blueprint" }), 0)
    set(made, { loras, steps: 2 })
}"""


def inputs_of(prompt):
    """What a prompt sets, without the titles."""
    return {node: (value["class_type"], value["inputs"]) for node, value in prompt.items()}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_those_of_the_api(editor, path):
    """Each loads without a word and would be queued as the example of the same name in API format."""
    editor.load(json.loads(path.read_text(encoding="utf-8")))
    queued = inputs_of(editor.prompt())
    posted = inputs_of(json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8")))
    assert queued.keys() == posted.keys()
    for node, (kind, inputs) in posted.items():
        assert queued[node][0] == kind
        assert inputs.items() <= queued[node][1].items()  # the editor also sends what is at its default


def prompt_of_blueprint(editor):
    """The blueprint found by its name and put on the canvas, with what it needs around it."""
    editor.start()
    editor.page.evaluate("() => window.app.graph.clear()")
    editor.page.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    editor.page.wait_for_function("() => document.activeElement?.tagName === 'INPUT'")
    editor.page.keyboard.type(BLUEPRINT, delay=50)
    editor.page.wait_for_function(FOUND, arg=BLUEPRINT)
    editor.page.get_by_role("option").filter(has_text=BLUEPRINT).first.click()
    editor.page.wait_for_function("() => window.app.graph.nodes.length === 1")
    editor.page.evaluate(SURROUND, LIST)
    return editor.prompt()


def test_the_blueprint_from_the_search_box(editor):
    """On the canvas it is the nodes that it is made of."""
    kinds = {node["class_type"] for node in prompt_of_blueprint(editor).values()}
    assert {"LoraAlloySweep", "LoraAlloyLoader", "KSampler", "LoraAlloyGrid"} <= kinds


def test_the_blueprint_runs(editor_page, server):
    """And gives the picture of two merges. Once: a server does not know which renderer queued."""
    entry = server.run(prompt_of_blueprint(editor_page))
    assert entry["status"]["status_str"] == "success", entry["status"]
    texts = [text for output in entry["outputs"].values() for text in output.get("text", ())]
    assert "method=linear\nmethod=ties" in texts


def test_queueing_from_the_page(editor_page, server):
    """The one-node example, at the size of the tiny model, queued from the page; once, as above."""
    path = ROOT / "example_workflows" / "api" / "Load and merge LoRAs.json"
    editor_page.load(example(path))
    entry = editor_page.queue(server)
    assert "sd15_b" in entry["prompt"][2]["10"]["inputs"]["loras"]
