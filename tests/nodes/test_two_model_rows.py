"""Rows for one of two models, in both renderers: how they show it, and the menu that sets it."""

import shutil
from itertools import pairwise

import pytest
from playwright.sync_api import expect

from tests.nodes.list_widget import add_list
from tests.nodes.test_list_menu import MENU, choose

HIGH, LOW = "<lora:pair_high.safetensors:0.7>", "<lora:pair_low.safetensors:0.7>"
NOISE, OTHER = "<lora:ink_low_noise.safetensors:1>", "<lora:sd15_b.safetensors:-0.5>"
LOADER = "LoraAlloyLoader"
CONNECT = """(id) => {
    const node = app.graph.getNodeById(id)
    const model = LiteGraph.createNode('UNETLoader')
    app.graph.add(model)
    model.connect(0, node, node.inputs.findIndex(({ name }) => name === 'model_low'))
}"""
DISCONNECT = """(id) => {
    const node = app.graph.getNodeById(id)
    node.disconnectInput(node.inputs.findIndex(({ name }) => name === 'model_low'))
}"""


@pytest.fixture(autouse=True)
def files(server):
    """Files whose names say a model; in the list of files that the page has, or looks up by name."""
    folder = server.base / "models" / "loras"
    names = ("pair_high", "pair_low", "ink_low_noise")
    for name in names:
        shutil.copy(folder / "sd15_a.safetensors", folder / f"{name}.safetensors")
    yield
    for name in names:
        (folder / f"{name}.safetensors").unlink()


def sides(rows):
    """The chip of each row, or nothing; with * where the row itself says so."""
    return rows.root.locator(".row").evaluate_all(
        "(all) => all.map((row) => { const chip = row.querySelector('.side');"
        " return chip ? chip.dataset.model + (chip.classList.contains('set') ? '*' : '') : '' })"
    )


def shows(rows, *wanted):
    """Wait until the chips are these."""
    expect(rows.root.locator(".row .side")).to_have_count(len([each for each in wanted if each]))
    assert sides(rows) == list(wanted)


def test_names_count_while_the_second_model_is_connected(editor):
    """A bare word beside its counterpart only, and only while that is on."""
    rows = add_list(editor, f"{HIGH}\n{LOW}\n{NOISE}\n{OTHER}", LOADER)
    shows(rows, "", "", "", "")
    editor.page.evaluate(CONNECT, rows.node)
    shows(rows, "high", "low", "low", "")
    chip = rows.root.locator(".row .side").first
    expect(chip).to_have_attribute("title", "For the high-noise model: as its name says")
    expect(chip).to_have_text("high")
    rows.part("on:1").click()
    shows(rows, "", "", "low", "")
    rows.part("on:1").click()
    shows(rows, "high", "low", "low", "")
    editor.page.evaluate(DISCONNECT, rows.node)
    shows(rows, "", "", "", "")


def test_the_menu_sets_it(editor):
    """Each choice but the one that holds; one step each, which can be undone, and the focus stays."""
    rows = add_list(editor, f"{NOISE}\n{OTHER}", LOADER)
    rows.part("menu:1").click()
    assert editor.page.locator(f"{MENU} [data-action^=on-]").count() == 0, "the list is for one model"
    editor.page.keyboard.press("Escape")
    editor.page.evaluate(CONNECT, rows.node)
    shows(rows, "low", "")
    choose(rows, 1, "on-high")
    rows.becomes(NOISE, OTHER.replace(">", ":on=high>"))
    rows.has_focus("menu:1")
    shows(rows, "low", "high*")
    choose(rows, 0, "on-both")
    rows.becomes(NOISE.replace(">", ":on=both>"), OTHER.replace(">", ":on=high>"))
    shows(rows, "both*", "high*")
    editor.page.evaluate(DISCONNECT, rows.node)
    shows(rows, "both*", "high*")
    choose(rows, 0, "on-name")
    choose(rows, 1, "on-low")
    rows.becomes(NOISE, OTHER.replace(">", ":on=low>"))
    shows(rows, "", "low*")
    with editor.reloading():
        editor.page.keyboard.press("Control+z")
    rows.becomes(NOISE, OTHER.replace(">", ":on=high>"))


def test_it_fits_at_the_least_width(editor):
    """The name gives way, and nothing lies over anything."""
    rows = add_list(editor, f"{HIGH.replace('>', ':on=high>')}\n{OTHER}", LOADER)
    edges = "({ left, right, top }) => [left, right, top]"
    boxes = (
        rows.root.locator(".row")
        .first.locator(".line > *")
        .evaluate_all(f"(all) => all.map((one) => ({edges})(one.getBoundingClientRect()))")
    )
    assert len(boxes) >= 6
    for (_, right, top), (left, _, other) in pairwise(boxes):
        assert left >= right - 0.5 or abs(top - other) > 5, boxes
