"""The menu of a row in both renderers: by its button, the right mouse button and the keyboard."""

import pytest
from playwright.sync_api import expect

from tests.nodes.list_widget import add_list

A, B, C = "<lora:sd15_a.safetensors:0.7>", "<lora:sd15_b.safetensors:-0.5>", "<lora:gone:1>"
MENU = ".lora-alloy-menu"


def choose(rows, at, action):
    """Open the menu of a row by its button, and click a line of it."""
    rows.part(f"menu:{at}").click()
    rows.page.locator(f'{MENU} [data-action="{action}"]').click()


@pytest.mark.parametrize(
    ("at", "action", "lines"),
    [
        (0, "off", (f"# {A}", B, C)),
        (1, "only", (f"# {A}", B, f"# {C}")),
        (1, "strength", (A.replace("0.7", "-0.5"), B, C.replace(":1", ":-0.5"))),
        (1, "up", (B, A, C)),
        (1, "down", (A, C, B)),
        (2, "top", (C, A, B)),
        (0, "bottom", (B, C, A)),
        (1, "duplicate", (A, B, B, C)),
        (1, "remove", (A, C)),
    ],
)
def test_each_action(editor, at, action, lines):
    """One undoable step; the menu is gone, and the focus is on the button of a row."""
    rows = add_list(editor, f"{A}\n{B}\n{C}")
    choose(rows, at, action)
    rows.becomes(*lines)
    expect(editor.page.locator(MENU)).to_have_count(0)
    to = {"up": 0, "down": 2, "top": 0, "bottom": 2}.get(action, at)
    rows.has_focus(f"menu:{to}")
    with editor.reloading():
        editor.page.keyboard.press("Control+z")
    rows.becomes(A, B, C)


@pytest.mark.parametrize(
    ("action", "popup"), [("info", ".lora-alloy-card"), ("blocks", ".lora-alloy-sliders")]
)
def test_what_opens_from_it(editor, action, popup):
    """The card and the block sliders of the row's file; closing them gives the focus back."""
    rows = add_list(editor, f"{A}\n{B}")
    choose(rows, 1, action)
    opened = editor.page.locator(popup)
    expect(opened).to_contain_text("sd15_b")
    editor.page.keyboard.press("Escape")
    expect(opened).to_have_count(0)
    rows.has_focus("menu:1")


def test_a_file_that_is_not_there_has_no_card(editor):
    """Nothing is known of it."""
    rows = add_list(editor, C)
    rows.part("menu:0").click()
    items = editor.page.locator(f"{MENU} [role=menuitem]")
    assert "info" not in items.evaluate_all("(items) => items.map((item) => item.dataset.action)")


def test_what_cannot_be_done_is_not_offered(editor):
    """A row that is first does not move up, and one row alone has no others."""
    rows = add_list(editor, f"# {A}")
    rows.part("menu:0").click()
    items = editor.page.locator(f"{MENU} [role=menuitem]")
    shown = items.evaluate_all("(items) => items.map((item) => item.dataset.action)")
    assert shown == ["info", "on", "blocks", "steps", "duplicate", "remove"]
    choose_on = editor.page.locator(f'{MENU} [data-action="on"]')
    choose_on.click()
    rows.becomes(A)


@pytest.mark.parametrize("key", ["Shift+F10", "ContextMenu"])
def test_by_keyboard(editor, key):
    """Arrows, letters and Home go through the lines; Escape gives the focus back."""
    rows = add_list(editor, f"{A}\n{B}\n{C}")
    page = editor.page
    active = "() => document.activeElement.dataset.action"
    rows.part("strength:1").focus()
    rows.press(key)
    assert page.locator(MENU).get_attribute("role") == "menu"
    seen = [page.evaluate(active)]
    for press in ("ArrowDown", "ArrowUp", "ArrowUp", "Home", "m", "m", "r", "End"):
        rows.press(press)
        seen.append(page.evaluate(active))
    assert seen == ["info", "off", "info", "remove", "info", "up", "down", "remove", "remove"]
    rows.press("Escape")
    expect(page.locator(MENU)).to_have_count(0)
    rows.has_focus("strength:1")
    rows.becomes(A, B, C)
    rows.press(key, "m", "Enter")
    rows.becomes(B, A, C)
    rows.has_focus("strength:0")


def test_right_click(editor):
    """Opens the menu of the row where the pointer is, and no other menu; a text field keeps its own."""
    rows = add_list(editor, f"{A}\n{B}")
    page = editor.page
    box = rows.part("name:1").bounding_box()
    rows.part("name:1").click(button="right")
    editor.drawn()
    menus = page.locator(f"{MENU}, .litecontextmenu, .p-contextmenu, .p-tieredmenu, [role=menu]")
    expect(menus).to_have_count(1)
    place = page.locator(MENU).bounding_box()
    assert abs(place["x"] - box["x"] - box["width"] / 2) < 2
    page.locator(f'{MENU} [data-action="off"]').click()
    rows.becomes(A, f"# {B}")
    rows.part("tab-Blocks").click()
    rows.part("blocks:0").click(button="right")
    editor.drawn()
    expect(menus).to_have_count(0)


def test_help(editor):
    """The question mark says what the list can do; Escape closes it."""
    rows = add_list(editor, A)
    rows.part("help").click()
    said = editor.page.get_by_role("dialog", name="Help")
    expect(said).to_contain_text("Shift+F10")
    editor.page.keyboard.press("Escape")
    expect(said).to_have_count(0)
    rows.has_focus("help")


def test_strength_over_the_sampling(editor):
    """The menu opens a field for it, which goes when it is left empty and stays while there is one."""
    rows = add_list(editor, f"{A}\n{B}")
    assert rows.part("steps:1").count() == 0
    choose(rows, 1, "steps")
    rows.has_focus("steps:1")
    assert rows.part("steps:0").count() == 0
    editor.page.keyboard.press("Tab")
    expect(rows.part("steps:1")).to_have_count(0)
    choose(rows, 1, "steps")
    rows.part("steps:1").fill("0-25")
    expect(rows.part("steps:1")).to_have_attribute("aria-invalid", "true")
    expect(rows.part("steps:1")).to_have_attribute(
        "title", "0-25: a share of the sampling lies between 0 and 1."
    )
    rows.part("steps:1").fill("0-0.25")
    expect(rows.part("steps:1")).not_to_have_attribute("aria-invalid", "true")
    editor.page.keyboard.press("Enter")
    rows.becomes(A, B.replace(">", ":steps=0-0.25>"))
    rows.part("menu:1").click()
    editor.page.keyboard.press("Escape")
    expect(rows.part("steps:1")).to_have_value("0-0.25")
    rows.part("steps:1").fill("")
    editor.page.keyboard.press("Tab")
    rows.becomes(A, B)
    expect(rows.part("steps:1")).to_have_count(0)
