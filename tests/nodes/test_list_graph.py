"""The list widget in both renderers: the rows survive everything that is done to the graph around them."""

from tests.nodes.list_widget import IDS, ListWidget, add_list, only, queued
from tests.nodes.pack import one_node

A, B, C = "<lora:sd15_a.safetensors:0.7>", "<lora:sd15_b.safetensors:-0.5>", "<lora:gone:1>"
TEXT = f"{A}\n# {B}\n# a remark\n{C}"
LISTS = """() => app.canvas.graph.nodes.map((node) => node.widgets?.find((w) => w.name === 'loras')?.value)"""


def test_undo_and_redo_row_by_row(editor):
    """One step for each edit, shown as well as stored."""
    rows = add_list(editor, A)
    rows.part("on:0").click()
    rows.paste(B)
    rows.drag("strength:1", right=30)
    states = [[A], [f"# {A}"], [f"# {A}", B], [f"# {A}", "<lora:sd15_b.safetensors:-0.2>"]]
    only(editor).becomes(*states[3])
    rows.part("tab-Prompts").click()
    rows.part("prompt:1").fill("ink")
    editor.page.keyboard.press("Enter")
    states.append([f"# {A}", "<lora:sd15_b.safetensors:-0.2:prompt=ink>"])
    only(editor).becomes(*states[4])
    only(editor).part("name:0").focus()  # in a field, undo is the field's own
    for key, order in (("Control+z", (3, 2, 1, 0)), ("Control+y", (1, 2, 3, 4))):
        for i in order:
            editor.page.keyboard.press(key)
            only(editor).becomes(*states[i])
            assert only(editor).root.is_visible()
    only(editor).part("remove:0").click()  # the element on the screen is the one that works
    only(editor).becomes(states[4][1])


def test_copy_and_paste(editor):
    """The copy has the rows and goes its own way."""
    rows = add_list(editor, TEXT)
    editor.page.evaluate("() => { app.canvas.selectNode(app.graph.nodes[0]); app.canvas.canvas.focus() }")
    editor.page.keyboard.press("Control+c")
    editor.page.mouse.move(900, 400)
    editor.page.keyboard.press("Control+v")
    editor.page.wait_for_function("() => app.graph.nodes.length === 2")
    copy = ListWidget(editor, next(node for node in editor.page.evaluate(IDS) if node != rows.node))
    copy.becomes(*TEXT.splitlines())
    copy.part("remove:0").click()
    copy.becomes(*TEXT.splitlines()[1:])
    rows.becomes(*TEXT.splitlines())


def test_save_and_load(editor):
    """The workflow holds the plain text."""
    add_list(editor, TEXT)
    workflow = editor.workflow()
    assert TEXT in workflow["nodes"][0]["widgets_values"]
    add_list(editor)
    editor.load(workflow)
    only(editor).becomes(*TEXT.splitlines())


def test_api_format(editor):
    """Exported for the API and loaded again."""
    add_list(editor, TEXT)
    prompt = editor.prompt()
    assert queued(editor) == [TEXT]
    add_list(editor)
    editor.load(prompt)
    only(editor).becomes(*TEXT.splitlines())


def test_switching_the_renderer(editor):
    """There and back while the graph is open; the rows are seen and work."""
    rows = add_list(editor, TEXT)
    was = editor.nodes2
    for nodes2 in (not was, was):
        editor.setting("Comfy.VueNodes.Enabled", nodes2)
        rows.becomes(*TEXT.splitlines())
        assert rows.part("name:0").is_visible()
    rows.part("remove:0").click()
    rows.becomes(*TEXT.splitlines()[1:])


def test_app_mode(editor):
    """The list in the panel of App mode is the one of the graph; back in the graph it is seen there."""
    editor.load(one_node(loras=TEXT))
    workflow = editor.workflow()
    ids = {node["type"]: node["id"] for node in workflow["nodes"]}
    linear = {"inputs": [[ids["LoraAlloyLoader"], "loras"]], "outputs": [ids["SaveImage"]]}
    app = {**workflow, "extra": {**workflow.get("extra", {}), "linearMode": True, "linearData": linear}}
    editor.load(app)
    rows = ListWidget(editor, str(ids["LoraAlloyLoader"]))
    try:
        rows.root.locator("xpath=ancestor::*[@data-testid='app-mode-widget-item']").wait_for()
        rows.becomes(*TEXT.splitlines())
        rows.part("on:1").click()
    finally:
        editor.page.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")
    edited = TEXT.replace("# <", "<")
    editor.page.locator('[data-testid="app-mode-widget-item"]').wait_for(state="detached")
    rows.becomes(*edited.splitlines())
    assert queued(editor) == [edited]
    rows.part("name:0").wait_for()


def test_queueing_runs_the_rows(editor, server):
    """The one-node example: a row is added in the page, and the server is sent what is seen."""
    editor.load(one_node())
    node = editor.page.evaluate("() => String(app.graph.findNodesByType('LoraAlloyLoader')[0].id)")
    rows = ListWidget(editor, node)
    rows.paste("<lora:sd15_a:0.1>")
    entry = editor.queue(server)
    sent = entry["prompt"][2][node]["inputs"]["loras"]
    assert sent == rows.value and sent.endswith("<lora:sd15_a.safetensors:0.1>")


def test_a_missing_file_is_said_on_the_node(editor):
    """The refusal names the file, and belongs to the node."""
    editor.load(one_node(loras="<lora:gone.safetensors:1>"))
    node = editor.page.evaluate("() => String(app.graph.findNodesByType('LoraAlloyLoader')[0].id)")
    editor.page.evaluate("() => { app.queuePrompt(0, 1) }")
    found = "(id) => { const e = app.lastNodeErrors?.[id]; return e && JSON.stringify(e) }"
    said = editor.page.wait_for_function(found, arg=node).json_value()
    assert "there is no LoRA file 'gone.safetensors'" in said.replace('\\"', '"')
    assert editor.page.evaluate("(id) => app.graph.getNodeById(id).has_errors", node)


def choose(editor, option):
    """Choose a method as a user does."""
    page = editor.page
    chosen = "(o) => app.graph.nodes[0].widgets.find((w) => w.name === 'method').value === o"
    if editor.nodes2:
        page.locator('[data-node-id] button[aria-label="method"]').click()
        page.get_by_role("option", name=option, exact=True).click()
        page.wait_for_function(chosen, arg=option)
        return
    x, y = page.evaluate(
        """() => {
            const node = app.graph.nodes[0], widget = node.widgets.find((w) => w.name === 'method')
            const { scale, offset } = app.canvas.ds, frame = app.canvas.canvas.getBoundingClientRect()
            const at = [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.y + 10]
            return [0, 1].map((i) => (at[i] + offset[i]) * scale + [frame.left, frame.top][i])
        }"""
    )
    page.mouse.click(x, y)
    page.locator(f'.litecontextmenu .litemenu-entry[data-value="{option}"]').click()
    page.wait_for_function(chosen, arg=option)


def test_switching_methods_keeps_values(editor):
    """Only the chosen method's parameters are there; what was set comes back."""
    add_list(editor, TEXT, "LoraAlloyLoader")
    names = "() => app.graph.nodes[0].widgets.map((w) => w.name).filter((n) => n.startsWith('method'))"
    density = "app.graph.nodes[0].widgets.find((w) => w.name === 'method.density')"
    choose(editor, "ties")
    shown = "([n, i]) => app.graph.nodes[0].widgets.filter((w) => w.name.startsWith(n)).length === i"
    editor.page.wait_for_function(shown, arg=["method", 3])
    assert editor.page.evaluate(names) == ["method", "method.density", "method.majority_sign_method"]
    editor.page.evaluate(f"() => {{ {density}.value = 0.25 }}")
    choose(editor, "linear")
    editor.page.wait_for_function(shown, arg=["method", 1])
    choose(editor, "magnitude_prune")
    editor.page.wait_for_function(shown, arg=["method", 2])
    assert editor.page.evaluate(f"() => {density}.value") == 0.7
    choose(editor, "ties")
    editor.page.wait_for_function(shown, arg=["method", 3])
    only(editor).becomes(*TEXT.splitlines())
    (prompt,) = editor.prompt().values()
    assert prompt["inputs"]["loras"] == TEXT
    assert prompt["inputs"]["method.density"] == 0.25
