"""How the list widget looks in both renderers: sizes, dimming, tooltips, fingers, and how fast it draws."""

import pytest
from playwright.sync_api import expect

from tests.nodes.editor import LIMIT
from tests.nodes.list_widget import add_list

A, B, C = "<lora:sd15_a.safetensors:0.7>", "<lora:sd15_b.safetensors:-0.5>", "<lora:gone:1>"
FULL = f"{A}\n# {B}\n<lora:sd15_a:1:0.5:blocks=down:0.5:prompt=a cat>"
WIDTH = """(width) => {
    const [node] = app.graph.nodes
    node.setSize([width, node.size[1]])
    app.canvas.setDirty(true, true)
}"""
PANEL = ".lora-alloy.in-panel"
SMALL = """(root) => [...root.querySelectorAll('button, input, textarea, [data-part]')]
    .filter((part) => part.offsetWidth < 24 || part.offsetHeight < 24)
    .map((part) => `${part.dataset.part}: ${part.offsetWidth} x ${part.offsetHeight}`)"""
OPACITY = """(root) => {
    let all = 1
    for (let at = root; at; at = at.parentElement) all *= Number(getComputedStyle(at).opacity)
    return all
}"""
# events of a finger, which no mouse comes with
TOUCH = """(element, [right, down]) => {
    const box = element.getBoundingClientRect()
    const at = [box.left + box.width / 2, box.top + box.height / 2]
    const send = (kind, share, button) => element.dispatchEvent(new PointerEvent(kind, {
        bubbles: true, cancelable: true, pointerId: 7, pointerType: 'touch', button, buttons: 1,
        clientX: at[0] + right * share, clientY: at[1] + down * share,
    }))
    element.setPointerCapture = () => {} // only real pointers can be captured
    send('pointerdown', 0, 0)
    for (const share of [0.25, 0.5, 0.75, 1]) send('pointermove', share, -1)
    send('pointerup', 1, 0)
}"""
VIEW = """async (path) => {
    const { ListView } = await import(new URL(path, location.href).href)
    const host = document.createElement('div')
    host.style.cssText = 'position: fixed; inset: 0 auto auto 0; width: 400px'
    document.body.append(host)
    const files = Array.from({ length: 5000 }, (_, n) => `folder/file${n}.safetensors`)
    window.emptyView = () => {
        window.testView = new ListView({ files: () => files, onEdit: () => {} })
        host.replaceChildren(testView.root)
        host.offsetHeight
    }
    window.removeView = () => host.remove()
}"""
DRAW = """(text) => {
    emptyView()
    testView.setText(text)
    testView.root.offsetHeight
}"""
SWITCH = """() => {
    testView.root.querySelector('[data-part="on:50"]').click()
    testView.root.offsetHeight
}"""


@pytest.fixture
def panel(editor):
    """The properties panel at the side, open for the test."""
    button = editor.page.locator('[data-testid="properties-panel"]')

    def toggle():
        editor.page.locator('button[aria-label="Toggle properties panel"]').first.click()

    if not button.count():
        toggle()
    button.wait_for()
    yield button
    toggle()
    button.wait_for(state="detached")


def select(editor):
    """Select the one node, as a click on it does."""
    editor.page.evaluate(
        "() => { app.canvas.selectNode(app.canvas.graph.nodes[0]); app.canvas.setDirty(true, true) }"
    )


def test_the_side_panel(editor, panel):
    """It has a list of its own without a gap, both follow each other, and the node's list keeps its size."""
    rows = add_list(editor, FULL, "LoraAlloyLoader")
    editor.page.evaluate(WIDTH, 420)
    editor.drawn()
    size = rows.root.bounding_box()
    select(editor)
    other = panel.locator(PANEL)
    expect(other.locator(".row")).to_have_count(3)
    editor.drawn()
    assert rows.root.bounding_box() == size
    box, item = other.bounding_box(), other.locator("xpath=..").bounding_box()
    assert abs(item["height"] - box["height"]) < 4 and box["width"] > 200
    other.locator('[data-part="on:1"]').click()
    rows.becomes(*FULL.replace("# ", "").splitlines())
    other.locator('[data-part="strength:0"]').focus()
    editor.page.keyboard.press("ArrowUp")
    editor.page.keyboard.press("ArrowUp")
    rows.becomes(*FULL.replace("# ", "").replace("0.7", "0.8").splitlines())
    rows.part("remove:2").click()
    expect(other.locator(".row")).to_have_count(2)
    expect(other.locator('[data-part="strength:0"]')).to_have_text("0.80")
    editor.page.evaluate("() => app.canvas.deselectAll()")
    other.wait_for(state="detached")
    editor.drawn()
    assert rows.root.bounding_box()["width"] == size["width"]


def test_muted_and_bypassed(editor):
    """As dim as the node, at once, and bright again."""
    rows = add_list(editor, A)
    set_mode = "(mode) => { app.graph.nodes[0].mode = mode; app.canvas.setDirty(true, true) }"
    bright = rows.root.evaluate(OPACITY)
    for mode in (2, 4):
        editor.page.evaluate(set_mode, mode)
        editor.drawn()
        assert rows.root.evaluate(OPACITY) <= 0.6, mode
        editor.page.evaluate(set_mode, 0)
        editor.drawn()
        assert rows.root.evaluate(OPACITY) == bright == 1


def test_no_tooltip_over_the_rows(editor):
    """The long tooltip of the input does not lie over the rows; those of the parts are there."""
    editor.setting("LiteGraph.Node.TooltipDelay", 0)
    editor.setting("Comfy.EnableTooltips", True)
    rows = add_list(editor, f"{A}\n{B}")
    for part in ("name:0", "strength:1", "add"):
        rows.part(part).hover()
        editor.drawn()
        tooltips = editor.page.locator(".p-tooltip, .node-tooltip").filter(
            has_text="LoRAs and their strengths"
        )
        assert tooltips.filter(visible=True).count() == 0
    title = rows.part("name:0").evaluate("(element) => element.closest('[title]').title")
    assert title == "sd15_a.safetensors"
    assert rows.root.locator(".foot").evaluate("(element) => element.closest('[title]').title") == ""


@pytest.mark.parametrize("width", [225, 400])
def test_targets_for_fingers(editor, width):
    """Whatever can be pressed is at least 24 pixels wide and high."""
    rows = add_list(editor, FULL)
    editor.page.evaluate(WIDTH, width)
    editor.drawn()
    assert rows.root.evaluate(SMALL) == []
    rows.part("tab-Text").click()
    assert rows.root.evaluate(SMALL) == []


def test_dragging_with_a_finger(editor):
    """A strength, and a row by its handle."""
    rows = add_list(editor, f"{A}\n{B}\n{C}")
    rows.part("strength:0").evaluate(TOUCH, [-50, 0])
    rows.becomes(A.replace("0.7", "0.2"), B, C)
    rows.part("handle:0").evaluate(TOUCH, [0, 60])
    rows.becomes(B, C, A.replace("0.7", "0.2"))
    for part in ("strength:0", "handle:0"):
        assert rows.part(part).evaluate("(element) => getComputedStyle(element).touchAction") == "none"


def test_dragging_shows_no_scrollbar(editor):
    """The mark at the end of the list lies inside of it."""
    rows = add_list(editor, f"{A}\n{B}\n{C}")
    box = rows.part("handle:0").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    editor.page.mouse.move(x, y)
    editor.page.mouse.down()
    editor.page.mouse.move(x, y + 30)
    editor.page.mouse.move(x, y + 70)
    assert rows.root.locator(".drop-below").count() == 1
    assert rows.root.locator(".rows").evaluate("(list) => list.scrollHeight <= list.clientHeight")
    editor.page.mouse.up()
    rows.becomes(B, C, A)


def test_wrong_block_strengths_are_marked_while_typing(editor):
    """Red, with the reason in the title; right again as soon as it is."""
    rows = add_list(editor, A)
    rows.part("tab-Blocks").click()
    field = rows.part("blocks:0")
    field.focus()
    editor.page.keyboard.type("down:x")
    assert field.get_attribute("aria-invalid") == "true"
    assert "x is not a number" in field.get_attribute("title")
    editor.page.keyboard.press("Backspace")
    editor.page.keyboard.type("0.5")
    assert field.get_attribute("aria-invalid") is None and field.get_attribute("title") is None
    editor.page.keyboard.type(" fox:1")
    editor.page.keyboard.press("Tab")
    rows.becomes(A.replace(">", ":blocks=down:0.5 fox:1>"))
    assert field.get_attribute("aria-invalid") == "true", "it is still wrong when it is left"
    assert "fox" in field.get_attribute("title")


def test_speed(editor, server):
    """100 rows are drawn within 100 ms, and one of them is switched within 50 ms."""
    editor.page.evaluate(VIEW, "extensions/any_folder-name/js/list/view.js")
    text = "\n".join(f"<lora:folder/file{n}.safetensors:0.5>" for n in range(100))
    assert editor.busy(lambda: editor.page.evaluate(DRAW, text)) < 100
    assert editor.busy(lambda: editor.page.evaluate(SWITCH)) < 50
    editor.page.evaluate("() => removeView()")
    rows = add_list(editor, text)
    click = """(button) => {
        button.click()
        document.body.offsetHeight
    }"""
    rows.part("on:50").wait_for(timeout=LIMIT)
    assert editor.busy(lambda: rows.part("on:50").evaluate(click)) < 50, "with ComfyUI's own work"
