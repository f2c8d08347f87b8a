"""The choice of a file on LoRA Recipe, in both renderers."""

import shutil
from contextlib import contextmanager

import pytest

from tests.nodes.list_widget import EMPTY, FIND

A, B = "sd15_a.safetensors", "sd15_b.safetensors"
REFRESH = "async () => { await app.refreshComboInNodes() }"
ADD = """(value) => {
    const node = LiteGraph.createNode('LoraAlloyRecipe')
    node.pos = [60, 80]
    app.graph.add(node)
    if (value) node.widgets.find(({ name }) => name === 'lora_name').value = value
    app.graph.change?.()
    app.extensionManager.workflow.activeWorkflow?.changeTracker?.captureCanvasState?.()
    return String(node.id)
}"""
IDS = "() => app.canvas.graph.nodes.map((node) => String(node.id))"
PROMOTE = """() => {
    const { node: host } = app.canvas.graph.convertToSubgraph(new Set(app.canvas.graph.nodes))
    const inner = host.subgraph.nodes[0]
    const slot = inner.inputs.find(({ name }) => name === 'lora_name')
    if (!host.widgets?.some(({ name }) => name === 'lora_name')) {
        host.subgraph.addInput('lora_name', 'STRING').connect(slot, inner)
    }
    return String(host.id)
}"""


class FileWidget:
    """The widget of one node, looked up anew each time."""

    def __init__(self, editor, node, name="lora_name"):
        self.editor, self.page, self.at = editor, editor.page, [node, name]

    @property
    def button(self):
        self.page.wait_for_function(f"(at) => ({FIND})(at)?.element.isConnected", arg=self.at)
        self.page.evaluate(f"(at) => {{ ({FIND})(at).element.dataset.test = at.join() }}", self.at)
        return self.page.locator(f'.file-field[data-test="{",".join(self.at)}"] button')

    def becomes(self, value, shown):
        """Wait until the value is stored, and seen without its ending."""
        self.page.wait_for_function(f"([at, v]) => ({FIND})(at)?.value === v", arg=[self.at, value])
        self.editor.drawn()
        assert self.button.inner_text().replace("\n", "") == shown and self.button.is_visible()

    def choose(self, text):
        self.button.click()
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")


@pytest.fixture(autouse=True, scope="module")
def fresh(editor):
    """A page of its own: many workflows that were opened before lie in tabs over it."""
    editor.start()


@pytest.fixture
def copied(editor, server):
    """A copy of a file, as x.safetensors in a folder, while the block runs; the list is refreshed."""

    @contextmanager
    def copy(name):
        loras = server.base / "models" / "loras"
        (loras / name).mkdir()
        try:
            shutil.copy(loras / A, loras / name / "x.safetensors")
            editor.page.evaluate(REFRESH)
            yield
        finally:
            shutil.rmtree(loras / name)
            editor.page.evaluate(REFRESH)

    return copy


def added(editor, value=None):
    """A node alone in the graph."""
    editor.page.keyboard.press("Escape")
    editor.page.evaluate(EMPTY)
    return FileWidget(editor, editor.page.evaluate(ADD, value))


def only(editor):
    (node,) = editor.page.evaluate(IDS)
    return FileWidget(editor, node)


def queued(editor):
    """What a prompt would have."""
    return [node["inputs"].get("lora_name") for node in editor.prompt().values()]


def test_choose_a_file(editor):
    """With the list of the other nodes; none is in it, and what is chosen can be undone."""
    field = added(editor)
    field.becomes("none", "none")
    field.choose("sd15_a")
    field.becomes(A, "sd15_a")
    assert queued(editor) == [A]
    assert field.button.evaluate("(button) => button === document.activeElement")
    field.choose("15_b")
    field.becomes(B, "sd15_b")
    for key, value in (("Control+z", A), ("Control+z", "none"), ("Control+y", A)):
        editor.page.keyboard.press(key)
        only(editor).becomes(value, value.removesuffix(".safetensors"))
    field = only(editor)
    field.button.click()
    current = editor.page.locator(".lora-alloy-picker [aria-current=true]")
    assert current.get_attribute("data-file") == A
    editor.page.keyboard.press("Home")
    editor.page.keyboard.press("Enter")
    field.becomes("none", "none")


def test_old_workflows_load(editor):
    """Values by their places, as the list of ComfyUI stored them; API format too."""
    added(editor, A).becomes(A, "sd15_a")
    workflow, prompt = editor.workflow(), editor.prompt()
    assert workflow["nodes"][0]["widgets_values"][:3] == [A, "", True]
    workflow["nodes"][0].pop("properties", None)
    for saved in (workflow, prompt):
        added(editor)
        editor.load(saved)
        only(editor).becomes(A, "sd15_a")
        assert queued(editor) == [A]


def test_a_missing_file_is_red(editor, server, copied):
    """Until it is there and the list is refreshed; the server refuses it once, at this widget."""
    field = added(editor, "later/x.safetensors")
    assert field.button.get_attribute("aria-invalid") == "true"
    assert "not in the loras folders" in field.button.get_attribute("title")
    status, answer = server.post("/prompt", {"prompt": editor.prompt()})
    assert status == 400
    (error,) = next(iter(answer["node_errors"].values()))["errors"]
    assert error["extra_info"]["input_name"] == "lora_name"
    assert "there is no LoRA file 'later/x.safetensors' in the loras folders" in error["details"]
    with copied("later"):
        assert field.button.get_attribute("aria-invalid") is None
    assert field.button.get_attribute("aria-invalid") == "true"


def test_windows_names_mean_the_same_file(editor, copied):
    """A saved graph may have the other slash; its file is found, and marked in the list."""
    with copied("slash"):
        field = added(editor, "slash\\x.safetensors")
        field.becomes("slash\\x.safetensors", "slash/x")
        assert field.button.get_attribute("aria-invalid") is None
        field.button.click()
        current = editor.page.locator(".lora-alloy-picker [aria-current=true]")
        assert current.get_attribute("data-file") == "slash/x.safetensors"


def test_promoted(editor):
    """On the node of a subgraph it can be chosen, and is what is queued, also after loading."""
    added(editor, A)
    field = FileWidget(editor, editor.page.evaluate(PROMOTE), "lora_name rows")
    field.becomes(A, "sd15_a")
    field.choose("sd15_b")
    field.becomes(B, "sd15_b")
    assert queued(editor) == [B]
    editor.load(editor.workflow())
    field.becomes(B, "sd15_b")
    assert queued(editor) == [B]
