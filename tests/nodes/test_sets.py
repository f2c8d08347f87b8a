"""The menu of sets, in both renderers: saved as text files in the user's folder, found, loaded, changed."""

import json

import pytest

from tests.nodes.list_widget import add_list
from tests.nodes.pack import ROOT, pack_module

A, B = "<lora:sd15_a.safetensors:0.7>", "# <lora:sd15_b.safetensors:-0.5:1:blocks=mid:0.5>"
NAMES = json.loads((ROOT / "tests" / "nodes" / "set_names.json").read_text(encoding="utf-8"))
MENU = ".lora-alloy-sets"
PROBLEM = "async (name) => (await import('/js/sets/names.js')).problemOf(name)"


@pytest.fixture
def folder(server):
    """Where the sets of the only user are; empty."""
    folder = server.base / "user" / "default" / "lora_alloy" / "sets"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    return folder


def open_menu(rows):
    """Open the menu and wait until it has been read."""
    rows.part("sets").click()
    menu = rows.page.locator(MENU)
    menu.locator(".sets > *").first.wait_for()
    return menu


def says(menu, text):
    """Wait until the menu says something."""
    menu.get_by_role("status").filter(has_text=text).wait_for()


def save(rows, name):
    """Save the list as a set with the menu, and leave it open."""
    menu = open_menu(rows)
    menu.get_by_role("button", name="Save as…").click()
    rows.page.keyboard.type(name)
    rows.page.keyboard.press("Enter")
    menu.locator(f'[data-set="{name}"]').wait_for()
    return menu


def undo(editor):
    with editor.reloading():
        editor.page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")


def test_save_load_undo(editor, folder):
    """The file is the list's text; a set replaces the rows or is added to them, each in one step."""
    rows = add_list(editor, f"# mine\n{A}\n{B}")
    menu = save(rows, "50% Ink é 墨")
    assert (folder / "50% Ink é 墨.txt").read_text(encoding="utf-8") == f"# mine\n{A}\n{B}\n"
    editor.page.keyboard.press("Escape")
    rows = add_list(editor, A)
    menu = open_menu(rows)
    menu.get_by_text("50% Ink é 墨", exact=True).click()
    rows.becomes("# mine", A, B)
    assert menu.count() == 0
    undo(editor)
    rows.becomes(A)
    open_menu(rows).get_by_text("50% Ink é 墨", exact=True).click(modifiers=["Shift"])
    rows.becomes(A, "# mine", A, B)
    undo(editor)
    rows.becomes(A)
    open_menu(rows).get_by_role("button", name="Add 50% Ink é 墨 to the list").click()
    rows.becomes(A, "# mine", A, B)


def test_after_the_page_is_loaded_again(editor, folder):
    """A set is in the user's folder, not in the page."""
    rows = add_list(editor, f"{A}\n{B}")
    save(rows, "ink")
    editor.start()
    rows = add_list(editor)
    open_menu(rows).get_by_text("ink", exact=True).click()
    rows.becomes(A, B)


def test_by_keyboard_alone(editor, folder):
    """Find, add, rename, delete with a question; the focus is never lost; no key reaches ComfyUI."""
    for name in ("ink 10", "ink 2", "mia"):
        (folder / f"{name}.txt").write_text(B)
    rows = add_list(editor, A)
    focused = "() => document.activeElement.textContent || document.activeElement.placeholder"
    press = editor.page.keyboard.press
    rows.part("sets").focus()
    press("Enter")
    menu = editor.page.locator(MENU)
    menu.locator(".set").nth(2).wait_for()
    assert menu.locator(".load").all_inner_texts() == ["ink 2", "ink 10", "mia"]
    editor.page.keyboard.type("nk 1")
    assert menu.locator(".load").all_inner_texts() == ["ink 10"]
    press("ArrowDown")
    assert editor.page.evaluate(focused) == "ink 10"
    press("F2")
    editor.page.keyboard.type("Mia")
    press("Enter")
    says(menu, "There is already a set Mia.")
    press("Backspace")
    editor.page.keyboard.type("o")
    press("Enter")
    editor.page.wait_for_function("() => document.activeElement.textContent === 'Mio'")
    assert sorted(path.name for path in folder.iterdir()) == ["Mio.txt", "ink 2.txt", "mia.txt"]
    press("ArrowUp")
    press("ArrowUp")
    assert editor.page.evaluate(focused) == "ink 2"
    press("Delete")
    assert "Delete ink 2?" in menu.inner_text()
    press("Escape")
    assert editor.page.evaluate(focused) == "ink 2"
    press("Delete")
    press("Shift+Tab")
    press("Enter")
    menu.locator('[data-set="ink 2"]').wait_for(state="detached")
    assert sorted(path.name for path in folder.iterdir()) == ["Mio.txt", "mia.txt"]
    assert editor.page.evaluate(focused) == "mia"
    press("Shift+Enter")
    rows.becomes(A, B)
    assert rows.root.locator('[data-part="sets"]:focus').count() == 1
    press("Enter")
    menu.locator(".set").first.wait_for()
    press("Escape")
    assert rows.root.locator('[data-part="sets"]:focus').count() == 1


def test_overwriting_asks(editor, folder):
    """The first Enter asks, the second one overwrites; another name starts anew."""
    (folder / "Ink.txt").write_text("<lora:old:1>")
    rows = add_list(editor, A)
    menu = open_menu(rows)
    menu.get_by_role("button", name="Save as…").click()
    editor.page.keyboard.type("Ink")
    editor.page.keyboard.press("Enter")
    says(menu, "There is already a set Ink. Overwrite it?")
    assert (folder / "Ink.txt").read_text() == "<lora:old:1>"
    menu.get_by_role("button", name="Overwrite").click()
    menu.get_by_role("button", name="Save as…").wait_for()
    assert (folder / "Ink.txt").read_text() == f"{A}\n"


def test_edited_on_disk(editor, folder):
    """A person's changes are loaded; what holds no LoRA, or is gone, changes nothing and is said."""
    rows = add_list(editor, A)
    (folder / "hand.txt").write_text("a fox <lora:sd15_b:0.5>\r\n# note")
    (folder / "empty.txt").write_text("nothing")
    (folder / "other.json").write_text("{}")
    menu = open_menu(rows)
    assert menu.locator(".load").all_inner_texts() == ["empty", "hand"]
    menu.get_by_text("empty", exact=True).click()
    says(menu, "There are no LoRAs in empty.")
    (folder / "empty.txt").unlink()
    menu.get_by_text("empty", exact=True).click()
    says(menu, "empty is not there any more.")
    menu.get_by_text("hand", exact=True).click()
    rows.becomes("a fox", "<lora:sd15_b:0.5>", "# note")


def test_refused_names_and_errors(editor, folder):
    """Names that lead out of the folder are refused before anything is sent; errors are said in words."""
    rows = add_list(editor)
    menu = open_menu(rows)
    assert "No sets yet" in menu.inner_text()
    assert menu.get_by_role("button", name="Save as…").is_disabled()
    editor.page.keyboard.press("Escape")
    rows = add_list(editor, A)
    menu = open_menu(rows)
    menu.get_by_role("button", name="Save as…").click()
    field = menu.get_by_role("textbox", name="Name of the set")
    for name, said in (
        ("../../evil", "cannot have any of"),
        ("nul", "Windows reserves"),
        ("", "Give the set a name"),
    ):
        field.fill(name)
        field.press("Enter")
        says(menu, said)
    folder.rmdir()
    folder.write_text("")  # nothing can be written into what is no folder, whoever tries
    try:
        field.fill("ink")
        field.press("Enter")
        says(menu, "ComfyUI could not change ink.")
    finally:
        folder.unlink()
    editor.problems.clear()  # newer frontends write a line of their own about it
    field.press("Enter")
    menu.locator('[data-set="ink"]').wait_for()
    assert [path.name for path in folder.iterdir()] == ["ink.txt"]
    editor.page.keyboard.press("Escape")


def test_names(scripts):
    """What the menu allows, Python allows as a name of a file; what Python refuses, the menu refuses."""
    file_names = pack_module("merge_ops.saving.file_names")
    for name in NAMES["good"]:
        assert scripts.evaluate(PROBLEM, name) is None, name
        file_names.check_name(name)
    for name in NAMES["both_refuse"]:
        assert scripts.evaluate(PROBLEM, name), name
        with pytest.raises(pack_module("merge_ops").ParameterError):
            file_names.check_name(name)
    for name in NAMES["refused"]:
        assert scripts.evaluate(PROBLEM, name), name
