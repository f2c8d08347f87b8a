"""The list widget and subgraphs, in both renderers: a subgraph's node shows it, and edits and undoes it."""

from playwright.sync_api import expect

from tests.nodes.list_widget import ADD, ListWidget, add_list, only, queued

A, B, C = "<lora:sd15_a.safetensors:0.7>", "<lora:sd15_b.safetensors:-0.5>", "<lora:gone:1>"
TEXT = f"{A}\n# {B}\n# a remark\n{C}"
CONVERT = """() => {
    app.canvas.emitBeforeChange() // as the menu does, so that it can be undone
    app.canvas.graph.convertToSubgraph(new Set(app.canvas.graph.nodes))
    app.canvas.emitAfterChange()
    return String(app.canvas.graph.nodes[0].id)
}"""
OPEN = "() => app.canvas.openSubgraph(app.graph.nodes[0].subgraph, app.graph.nodes[0])"
CLOSE = "() => app.canvas.setGraph(app.rootGraph ?? app.graph)"


def convert(editor, name="loras rows"):
    """All nodes become a subgraph; the list that is on its node."""
    host = editor.page.evaluate(CONVERT)
    editor.drawn()
    return ListWidget(editor, host, name)


def test_converted(editor):
    """The list is on the node of the subgraph; edited there, seen inside, and unpacked."""
    add_list(editor, TEXT)
    outer = convert(editor)
    assert queued(editor) == [TEXT]
    editor.load(editor.workflow())
    assert queued(editor) == [TEXT]
    outer.becomes(*TEXT.splitlines())
    outer.part("on:1").click()
    edited = TEXT.replace("# <", "<")
    outer.becomes(*edited.splitlines())
    assert outer.root.is_visible() and queued(editor) == [edited]
    editor.page.evaluate(OPEN)
    assert only(editor).value == edited
    editor.page.evaluate(CLOSE)
    editor.page.evaluate("() => app.graph.unpackSubgraph(app.graph.nodes[0])")
    only(editor).becomes(*edited.splitlines())
    only(editor).part("remove:0").click()
    only(editor).becomes(*edited.splitlines()[1:])


def test_undo_on_the_node_of_a_subgraph(editor):
    """Step by step, with the rows and the focus that belong to each."""
    add_list(editor, f"{A}\n{B}")
    outer = convert(editor)
    outer.part("on:1").focus()
    outer.press("Space")
    outer.becomes(A, f"# {B}")
    outer.press("ArrowUp", "Space")
    outer.becomes(f"# {A}", f"# {B}")
    steps = [(A, B), (A, f"# {B}"), (f"# {A}", f"# {B}")]
    for key, order in (("Control+z", (1, 0)), ("Control+y", (1, 2))):
        for i in order:
            with editor.reloading():
                outer.press(key)
            outer.becomes(*steps[i])
            expect(outer.root.locator(".row.off")).to_have_count(i)
            outer.has_focus("on:0")
            assert queued(editor) == ["\n".join(steps[i])]


def test_two_lists_in_one_subgraph(editor):
    """Each has a name of its own on the node of the subgraph."""
    add_list(editor, A)
    editor.page.evaluate(ADD, ["LoraAlloyStack", B, [500, 80]])
    first = convert(editor)
    second = ListWidget(editor, first.node, "loras_1 rows")
    names = editor.page.evaluate("() => app.graph.nodes[0].subgraph.inputs.map((input) => input.name)")
    assert [name for name in names if name.startswith("loras")] == ["loras", "loras_1"]
    values = [first.value, second.value]
    assert sorted(values) == sorted([A, B])
    second.part("on:0").click()
    second.becomes(f"# {values[1]}")
    assert sorted(queued(editor)) == sorted([values[0], f"# {values[1]}"])


def test_a_linked_list_cannot_be_edited(editor):
    """What comes over a link would be lost; without the link, the list is edited again."""
    rows = add_list(editor, f"{A}\n{B}")
    linked = """() => {
        const [node] = app.graph.nodes
        const source = LiteGraph.createNode('PrimitiveStringMultiline')
        source.pos = [700, 80]
        app.graph.add(source)
        source.connect(0, node, node.inputs.findIndex((input) => input.name === 'loras'))
    }"""
    inert = "(inert) => app.graph.nodes[0].widgets.find((w) => w.name === 'loras').element.inert === inert"
    editor.page.evaluate(linked)
    editor.page.wait_for_function(inert, arg=True)
    unlink = """() => {
        const [node] = app.graph.nodes
        node.disconnectInput(node.inputs.findIndex((input) => input.name === 'loras'))
    }"""
    editor.page.evaluate(unlink)
    editor.page.wait_for_function(inert, arg=False)
    rows.part("on:0").click()
    rows.becomes(f"# {A}", B)


PROMOTE = """() => {
    app.canvas.graph.convertToSubgraph(new Set(app.canvas.graph.nodes))
    const host = app.canvas.graph.nodes[0], inner = host.subgraph.nodes[0]
    const slot = inner.inputs.find((input) => input.name === 'loras')
    const isThere = host.widgets.some((widget) => widget.name === 'loras')
    if (!isThere) host.subgraph.addInput('loras', 'STRING').connect(slot, inner)
    return String(host.id)
}"""


def test_promoted(editor):
    """On the node of a subgraph the list can be edited, and is what is queued, also after loading."""
    add_list(editor, TEXT)
    rows = ListWidget(editor, editor.page.evaluate(PROMOTE), "loras rows")
    rows.becomes(*TEXT.splitlines())
    rows.part("on:1").click()
    edited = TEXT.replace("# <", "<")
    rows.becomes(*edited.splitlines())
    assert rows.root.is_visible() and queued(editor) == [edited]
    editor.load(editor.workflow())
    rows.becomes(*edited.splitlines())
    rows.part("remove:0").click()
    rows.becomes(*edited.splitlines()[1:])
    assert queued(editor) == ["\n".join(edited.splitlines()[1:])]
