"""The lists that help to choose: of methods, and of what a sweep can vary; settings where they count."""

import pytest

from merge_ops.methods.registry import METHODS
from tests.nodes.list_widget import EMPTY

# a sweep before a merge with two LoRAs that are on; the ids of both
BUILD = """() => {
    const made = ['LoraAlloyLoader', 'LoraAlloySweep'].map((type, i) => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        node.pos = [i ? 40 : 460, 60]
        return node
    })
    const [merge, sweep] = made
    merge.widgets.find(({ name }) => name === 'loras').value =
        '<lora:people/mia.safetensors:0.7>\\n# <lora:off:1>\\n<lora:ink:0.8>'
    sweep.connect(0, merge, merge.inputs.findIndex(({ name }) => name === 'sweep'))
    app.graph.change?.()
    return made.map(({ id }) => String(id))
}"""
# as a press of the button, which on the canvas is no element, would
PRESS = """([id, label]) => {
    const node = app.graph.nodes.find((each) => String(each.id) === id)
    node.widgets.find((widget) => widget.name === label).callback()
}"""
VALUE = """([id, name]) => app.graph.nodes.find((node) => String(node.id) === id)
    .widgets.find((widget) => widget.name === name).value"""
SHOWN = """(id) => {
    const node = app.graph.nodes.find((each) => String(each.id) === id)
    const names = ['seed', 'space', 'rank', 'auto_strength', 'speed_loras']
    const isShown = ({ name, hidden, options }) => names.includes(name) && !hidden && !options?.hidden
    return [node.widgets.filter(isShown).map(({ name }) => name), node.serialize().widgets_values]
}"""
REMOVE = "(id) => app.graph.remove(app.graph.nodes.find((n) => String(n.id) === id))"
RECORDED = """(type) => {
    const [node, record] = [type, 'LoraAlloyRecord'].map((each) => {
        const made = LiteGraph.createNode(each)
        app.graph.add(made)
        return made
    })
    const strength = node.widgets.find(({ name }) => name === 'auto_strength')
    const input = node.inputs.findIndex(({ name }) => name === 'recording')
    const seen = [!strength.hidden]
    record.connect(record.outputs.findIndex(({ type }) => type === 'LORA_RECORDING'), node, input)
    seen.push(!strength.hidden)
    node.disconnectInput(input)
    return [...seen, !strength.hidden]
}"""
HEIGHT = """(id) => document.querySelector(`[data-node-id="${id}"]`)?.getBoundingClientRect().height
    ?? app.graph.nodes.find((each) => String(each.id) === id).size[1]"""
SET = """([id, name, value]) => {
    const widget = app.graph.nodes.find((n) => String(n.id) === id).widgets.find((w) => w.name === name)
    widget.value = value
    widget.callback?.(value)
}"""


@pytest.fixture
def graph(editor):
    """The page, the merge and the sweep."""
    editor.page.keyboard.press("Escape")
    editor.page.evaluate(EMPTY)
    merge, sweep = editor.page.evaluate(BUILD)
    editor.drawn()
    return editor.page, merge, sweep


def offered(page):
    return page.locator(".lora-alloy-choices [role=option]").evaluate_all(
        "(all) => all.map((each) => each.dataset.value)"
    )


def press(editor_page, node, label):
    editor_page.evaluate(PRESS, [node, label])
    editor_page.locator(".lora-alloy-choices input").wait_for()


def test_the_list_of_methods(graph):
    """Every method with its line; what is recommended, random, or needs a recording says so; keys choose."""
    page, merge, _ = graph
    press(page, merge, "Choose a method")
    assert offered(page) == [*METHODS, "peft"]
    shown = {name: page.locator(f'[role=option][data-value="{name}"]').inner_text() for name in METHODS}
    for name, method in METHODS.items():
        assert method.summary in shown[name]
        assert ("random" in shown[name].split("\n")[1]) == ("generator" in method.supplied)
        assert ("needs a recording" in shown[name].split("\n")[1]) == method.needs_recording
    assert [name for name in METHODS if "recommended" in shown[name]] == ["linear", "mean", "even"]
    page.keyboard.type("elect average ties")
    names = offered(page)
    assert "ties" in names and "linear" not in names
    for _ in range(names.index("dare_ties")):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.evaluate(VALUE, [merge, "method"]) == "dare_ties"
    assert page.evaluate(VALUE, [merge, "method.density"]) == 0.5
    assert page.locator(".lora-alloy-choices").count() == 0


def test_escape_changes_nothing(graph):
    """The list closes, and the method stays."""
    page, merge, _ = graph
    press(page, merge, "Choose a method")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    page.locator(".lora-alloy-choices").wait_for(state="detached")
    assert page.evaluate(VALUE, [merge, "method"]) == "linear"


def test_what_a_sweep_can_vary(graph):
    """The parameters of the merge behind it, and its LoRAs that are on; an example of values comes along."""
    page, merge, sweep = graph
    page.evaluate(SET, [merge, "method", "breadcrumbs"])
    press(page, sweep, "What can vary")
    wanted = ["strength", "method", "rank", "seed", "density", "outliers"]
    wanted += [f"{setting} {lora}" for lora in ("mia", "ink") for setting in ("strength", "clip", "blocks")]
    assert offered(page) == wanted
    page.keyboard.type("blocks ink")
    page.keyboard.press("Enter")
    assert page.evaluate(VALUE, [sweep, "parameter"]) == "blocks ink"
    assert page.evaluate(VALUE, [sweep, "values"]) == "down:0..1 step 0.5"


def test_values_that_were_written_stay(graph):
    """Only an example is replaced."""
    page, _, sweep = graph
    page.evaluate(
        "(id) => { app.graph.nodes.find((n) => String(n.id) === id).widgets[1].value = '0.3, 0.7' }", sweep
    )
    press(page, sweep, "What can vary")
    page.keyboard.type("clip mia")
    page.keyboard.press("Enter")
    assert page.evaluate(VALUE, [sweep, "parameter"]) == "clip mia"
    assert page.evaluate(VALUE, [sweep, "values"]) == "0.3, 0.7"


def test_settings_are_shown_where_they_count(graph):
    """By the method, unless a sweep may choose another; their places among the saved values stay."""
    page, merge, sweep = graph
    assert page.evaluate(SHOWN, merge)[0] == ["space", "rank", "seed", "speed_loras"]  # a sweep
    page.evaluate(REMOVE, sweep)
    seen = {}
    for method in ("linear", "mean", "even", "dare_linear", "linear", "peft"):
        page.evaluate(SET, [merge, "method", method])
        seen[method], saved = page.evaluate(SHOWN, merge)
        place = saved.index("delta")  # after the method and its parameters
        assert saved[1] == method
        assert saved[place : place + 6] == ["delta", 0, 0, "fixed", 1, False]
    assert seen == {
        "linear": ["space", "rank"], "mean": ["rank", "speed_loras"], "even": ["rank", "speed_loras"],
        "dare_linear": ["space", "rank", "seed", "speed_loras"], "peft": ["seed"],
    }  # fmt: skip


def test_a_setting_that_would_be_refused_is_shown(graph):
    """A method that has no factors space says so when it runs: what to put back can be seen."""
    page, merge, sweep = graph
    page.evaluate(REMOVE, sweep)
    for name, value in (("space", "factors"), ("rank", 8), ("method", "even"), ("auto_strength", True)):
        page.evaluate(SET, [merge, name, value])
    page.evaluate(SET, [merge, "method", "peft"])
    assert page.evaluate(SHOWN, merge)[0] == ["space", "rank", "seed", "auto_strength"]


def test_the_strength_by_measuring_comes_with_a_recording(graph):
    """Also on the node that takes its method from another."""
    page, *_ = graph
    for kind in ("LoraAlloyLoader", "LoraAlloyMerge"):
        seen = page.evaluate(RECORDED, kind)
        assert seen == [False, True, False]


def test_hidden_settings_leave_no_gap(graph, editor):
    """The node is as high as it was, after it was set to another method and back."""
    page, merge, sweep = graph
    page.evaluate(REMOVE, sweep)
    heights = []
    for method in ("linear", "even", "linear", "peft", "linear"):
        page.evaluate(SET, [merge, "method", method])
        editor.drawn()
        heights.append(page.evaluate(HEIGHT, merge))
    assert heights[0] == heights[2] == heights[4]
