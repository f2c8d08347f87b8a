"""What a node says, on the node, in both renderers: after every outcome of a run, and nothing stale."""

from tests.nodes.list_widget import EMPTY, ListWidget
from tests.nodes.pack import LIST, one_node

FIND = """(id) => String(id).split(":").reduce(
    ({ graph }, part) => { const node = graph.getNodeById(part); return { node, graph: node?.subgraph } },
    { graph: app.rootGraph ?? app.graph }).node?.loraAlloyReport"""
TEXT = f"(id) => ({FIND})(id)?.root.textContent ?? null"
MERGED = r"ties of 2 LoRAs, 193 layers, full rank, [\d.]+ s"
NOTHING = "No LoRA is on: model and CLIP are unchanged."
ONLY_TEXT_PREVIEWS = (
    "() => app.graph.nodes.flatMap((n) => n.widgets ?? []).filter((w) => w.name.startsWith('$$'))"
)


def says(editor, pattern, node="10"):
    """Wait until a node says this, and return what it says."""
    matches = f"([id, wanted]) => new RegExp(`^(?:${{wanted}})$`, 's').test(({TEXT})(id))"
    try:
        editor.page.wait_for_function(matches, arg=[node, pattern])
    except Exception as error:
        raise AssertionError(f"{editor.page.evaluate(TEXT, node)!r} is not {pattern!r}") from error
    return editor.page.evaluate(TEXT, node)


def kinds(editor, node="10"):
    """The kinds of its lines: result, note, warning, error."""
    return editor.page.evaluate(
        f"(id) => [...({FIND})(id).root.children].flatMap((e) => [...e.children]).map((e) => e.className)",
        node,
    )


def load(editor, **inputs):
    """The one-node example."""
    editor.page.evaluate(EMPTY)
    editor.load(one_node(method="ties", **inputs))


def set_list(editor, text):
    """Change the list of the node."""
    change = "(t) => { app.graph.getNodeById('10').widgets.find((w) => w.name === 'loras').value = t }"
    editor.page.evaluate(change, text)


def reseed(editor, seed):
    """Make ComfyUI run the sampler again; the merge stays cached."""
    editor.page.evaluate(
        "(s) => { app.graph.getNodeById('3').widgets.find((w) => w.name === 'seed').value = s }", seed
    )


def queue_failing(editor, server):
    """Queue a graph whose run fails."""
    with editor.page.expect_response(lambda answer: answer.url.endswith("/api/prompt")) as answer:
        editor.page.evaluate("() => { app.queuePrompt(0, 1) }")
    assert server.wait(answer.value.json()["prompt_id"])["status"]["status_str"] == "error"


def test_every_outcome(editor, server):
    """A result, an empty list, an error, a result again; never what an earlier run said."""
    load(editor)
    says(editor, "")
    editor.queue(server)
    said = says(editor, MERGED)
    page = editor.page
    assert page.evaluate("(text) => document.body.innerText.split(text).length - 1", said) == 1
    assert not page.evaluate(ONLY_TEXT_PREVIEWS)
    set_list(editor, f"# {LIST.splitlines()[0]}")
    editor.queue(server)
    says(editor, NOTHING)
    set_list(editor, "<lora:flux_only:1>")
    queue_failing(editor, server)
    says(editor, "flux_only does not fit this model: .*")
    assert kinds(editor) == ["error"]
    set_list(editor, LIST.replace(":0.9>", ":0.9:blocks=mid:0.5>"))
    entry = editor.queue(server)
    says(editor, f"{MERGED}sd15_b: blocks mid:0.5: .*")
    assert kinds(editor) == ["result", "note"]
    assert entry["outputs"]["10"]["text"][0].splitlines()[1].startswith("sd15_b: blocks")


def test_a_failure_below_empties_what_was_not_reached(editor, server):
    """Save LoRA does not go on saying what it saved before."""
    workflow = one_node(method="linear", **{"method.density": None})
    workflow["15"] = {
        "class_type": "LoraAlloySave",
        "inputs": {"lora": ["10", 2], "filename_prefix": "loras/said"},
    }
    editor.page.evaluate(EMPTY)
    editor.load(workflow)
    editor.queue(server)
    says(editor, "loras/said_.*", "15")
    set_list(editor, "<lora:flux_only:1>")
    queue_failing(editor, server)
    says(editor, "flux_only does not fit .*")
    says(editor, "", "15")


def test_a_cached_run_after_loading_the_page(editor, server):
    """Nothing is said until the run; then what was said when it was made, if this ComfyUI sends it again."""
    load(editor)
    editor.queue(server)
    said = says(editor, MERGED)
    workflow = editor.workflow()
    editor.start()
    editor.load(workflow)
    says(editor, "")
    reseed(editor, 7 + editor.nodes2)
    entry = editor.queue(server)
    assert "10" in dict(entry["status"]["messages"])["execution_cached"]["nodes"]
    resends = server.get("/object_info")["LoraAlloyLoader"].get("has_intermediate_output")
    assert says(editor, MERGED if resends else "") == (said if resends else "")
    reseed(editor, 9 + editor.nodes2)
    editor.queue(server)
    says(editor, MERGED if resends else "")


def test_interrupted(editor, server):
    """Progress while it runs, in the same place; after an interruption that, and no progress."""
    load(editor)
    recorded = {"model": ["4", 0], "clip": ["4", 1], "loras": "<lora:sd15_a:1:prompt=ink>", "steps": 1000,
                "width": 64, "height": 64}  # fmt: skip
    workflow = one_node() | {"20": {"class_type": "LoraAlloyRecord", "inputs": recorded}}
    workflow["21"] = {"class_type": "LoraAlloyMeasure", "inputs": {"recording": ["20", 0]}}
    editor.page.evaluate(EMPTY)
    editor.load(workflow)
    editor.page.evaluate("() => { app.queuePrompt(0, 1) }")
    says(editor, r".+, \d+ s", "20")
    assert kinds(editor, "20") == ["progress"]
    server.post("/interrupt", {})
    says(editor, r"Interrupted\.", "20")
    says(editor, "", "21")


def test_undo_and_copy(editor, server):
    """Undo makes new nodes, which say what the old ones said; a copy has said nothing."""
    load(editor)
    editor.queue(server)
    said = says(editor, MERGED)
    rows = ListWidget(editor, "10")
    rows.part("on:0").click()
    says(editor, MERGED)
    rows.part("name:0").focus()
    with editor.reloading():
        editor.page.keyboard.press("Control+z")
    rows.becomes(*LIST.splitlines())
    assert says(editor, MERGED) == said
    shown = editor.page.locator(".lora-alloy-report").filter(has_text=said)
    shown.wait_for()
    assert shown.count() == 1
    editor.page.evaluate(
        "() => { app.canvas.selectNode(app.graph.getNodeById('10')); app.canvas.canvas.focus() }"
    )
    editor.page.keyboard.press("Control+c")
    editor.page.mouse.move(900, 600)
    count = editor.page.evaluate("() => app.graph.nodes.length")
    editor.page.keyboard.press("Control+v")
    editor.page.wait_for_function("(n) => app.graph.nodes.length > n", arg=count)
    editor.drawn()
    others = "app.graph.nodes.filter((n) => n.type === 'LoraAlloyLoader' && String(n.id) !== '10')"
    copy = editor.page.evaluate(f"() => String({others}[0].id)")
    says(editor, "", copy)
    assert says(editor, MERGED) == said


def test_switching_the_renderer(editor, server):
    """The text is seen in both, and the node is high enough for it."""
    load(editor)
    editor.queue(server)
    said = says(editor, MERGED)
    was = editor.nodes2
    for nodes2 in (not was, was):
        editor.setting("Comfy.VueNodes.Enabled", nodes2)
        shown = editor.page.locator(".lora-alloy-report").filter(has_text=said)
        shown.wait_for()
        assert shown.count() == 1 and shown.bounding_box()["height"] > 12


def test_in_a_closed_subgraph(editor, server):
    """The node inside says it when the subgraph is opened."""
    load(editor)
    inside = editor.page.evaluate("""() => {
        const { node } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById('10')]))
        return `${node.id}:${node.subgraph.nodes[0].id}`
    }""")
    editor.drawn()
    editor.queue(server)
    said = says(editor, MERGED, inside)
    editor.page.evaluate(
        "(id) => { const node = app.graph.getNodeById(id); app.canvas.openSubgraph(node.subgraph, node) }",
        inside.split(":")[0],
    )
    editor.page.locator(".lora-alloy-report").filter(has_text=said).wait_for()
    editor.page.evaluate("() => app.canvas.setGraph(app.rootGraph ?? app.graph)")


def test_not_stored_and_as_high_as_its_text(editor):
    """No value and no height in the workflow; it grows to ten lines, scrolls then, and shrinks again."""
    load(editor)
    editor.drawn()
    stored = next(node for node in editor.workflow()["nodes"] if node["id"] in (10, "10"))
    height = """() => {
        const node = app.graph.getNodeById('10')
        const box = document.querySelector('[data-node-id="10"]')
        return LiteGraph.vueNodesMode ? box.offsetHeight : node.size[1]
    }"""
    empty = editor.page.evaluate(height)
    lines = [["result", "<b>a</b> result"], *(["warning", f"warning {number}"] for number in range(40))]
    editor.page.evaluate(f"([id, lines]) => ({FIND})(id).show([lines])", ["10", lines])
    editor.drawn()
    root = editor.page.locator(".lora-alloy-report").filter(has_text="warning 39")
    root.wait_for()
    assert root.locator("b").count() == 0 and "<b>a</b> result" in root.inner_text()
    assert root.evaluate("(e) => e.scrollHeight > 2 * e.clientHeight && e.clientHeight > 100")
    editor.page.wait_for_function(f"(was) => ({height})() > was + 100", arg=empty)
    again = next(node for node in editor.workflow()["nodes"] if node["id"] in (10, "10"))
    assert again["widgets_values"] == stored["widgets_values"]
    if not editor.nodes2:
        assert again["size"] == stored["size"]
    editor.page.evaluate(f"(id) => ({FIND})(id).show([])", "10")
    editor.page.wait_for_function(f"(was) => Math.abs(({height})() - was) < 2", arg=empty)
