"""Pictures on nodes in the editor: large enough to read, in the colours of its theme, in both renderers."""

import pytest

from tests.nodes.list_widget import EMPTY
from tests.nodes.pack import LIST

BUILD = """([loras, view]) => {
    const add = (type, at) => {
        const node = LiteGraph.createNode(type)
        node.pos = at
        app.graph.add(node)
        return node
    }
    const set = (node, name, value) => {
        const widget = node.widgets.find((other) => other.name === name)
        widget.value = value
        widget.callback?.(value)
    }
    const stack = add('LoraAlloyStack', [40, 80])
    set(stack, 'loras', loras)
    const inspect = add('LoraAlloyInspect', [460, 80])
    stack.connect(0, inspect, 0)
    if (view) set(inspect, 'view', view)
    return String(inspect.id)
}"""
SIZE = "(id) => [...app.graph.getNodeById(id).size].map(Math.round)"
SHOWN = """(id) => {
    const widget = app.graph.getNodeById(id).widgets.find(({ name }) => name === 'theme')
    return [widget.hidden, widget.options.hidden, widget.value]
}"""


@pytest.fixture
def inspect(editor):
    """A function that puts Inspect LoRAs with a stack on an empty canvas; the theme is dark at the end."""

    def build(view=None, loras=LIST):
        editor.page.evaluate(EMPTY)
        node = editor.page.evaluate(BUILD, [loras, view])
        editor.drawn()
        return node

    yield build
    editor.setting("Comfy.ColorPalette", "dark")


def size(editor, node):
    return tuple(editor.page.evaluate(SIZE, node))


def corner(editor, server, node):
    """A pixel of the paper of the picture that a run shows."""
    picture = server.pictures(editor.queue(server), node)[0]
    assert picture.width == 960
    return picture.convert("RGB").getpixel((3, 3))


def test_the_picture_has_the_colours_of_the_theme(editor, server, inspect):
    """Switching the theme and running again changes it; the graph does not change with the theme."""
    node = inspect()
    editor.setting("Comfy.ColorPalette", "light")
    assert min(corner(editor, server, node)) > 230
    before = editor.workflow()
    editor.setting("Comfy.ColorPalette", "dark")
    assert max(corner(editor, server, node)) < 60
    values = [[n.get("widgets_values") for n in w["nodes"]] for w in (before, editor.workflow())]
    assert values[0] == values[1]
    assert editor.page.evaluate(SHOWN, node) == [True, True, "light"]


def test_a_new_node_is_wide_enough(editor, server, inspect):
    """For text of 11 pixels; another view does not make it lower, and a taller picture makes it higher."""
    node = inspect()
    width, height = size(editor, node)
    assert width >= 540 and height >= 500
    node = inspect("spectrum")
    assert size(editor, node)[0] >= 540 and size(editor, node)[1] >= 500
    picture = server.pictures(editor.queue(server), node)[0]
    room = 540 * picture.height / picture.width
    editor.page.wait_for_function(f"([id, room]) => ({SIZE})(id)[1] > room", arg=[node, room])


def test_a_size_that_was_chosen_stays(editor, server, inspect):
    """Larger or smaller, also in a workflow that is loaded; only a new node grows for its picture."""
    for chosen in ([900, 760], [560, 560]):
        node = inspect("norms", "\n".join(f"<lora:sd15_{name}:1>" for name in "abc"))
        editor.page.evaluate("([id, size]) => app.graph.getNodeById(id).setSize(size)", [node, chosen])
        editor.drawn()
        before = size(editor, node)
        editor.queue(server)
        editor.drawn()
        assert size(editor, node) == before
    saved = editor.workflow()
    editor.load(saved)
    assert size(editor, node) == before
    editor.queue(server)
    editor.drawn()
    assert size(editor, node) == before


def test_without_the_editor_the_picture_is_light(server):
    """And dark where that is asked for; another name is refused when it is queued."""
    stack = {"class_type": "LoraAlloyStack", "inputs": {"loras": LIST}}
    papers = {}
    for theme in (None, "dark"):
        inputs = {"stack": ["1", 0], "view": "norms"} | ({"theme": theme} if theme else {})
        workflow = {"1": stack, "9": {"class_type": "LoraAlloyInspect", "inputs": inputs}}
        papers[theme] = server.pictures(server.run(workflow))[0].convert("RGB").getpixel((3, 3))
    assert min(papers[None]) > 230 and max(papers["dark"]) < 60
    workflow["9"]["inputs"]["theme"] = "blue"
    assert server.post("/prompt", {"prompt": workflow})[0] == 400
