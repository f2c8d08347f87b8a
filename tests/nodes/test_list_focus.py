"""The list widget by keyboard alone, in both renderers: the focus stays where it was through every edit."""

from tests.nodes.list_widget import ListWidget, add_list

A, B, C = "<lora:sd15_a.safetensors:0.7>", "<lora:sd15_b.safetensors:-0.5>", "<lora:gone:1>"
ROW = ("on", "name", "strength", "menu", "remove")


def test_walk_through(editor):
    """Tab reaches every control in the order of reading; arrows go from row to row."""
    rows = add_list(editor, f"{A}\n{B}")
    rows.part("all").focus()
    order = ["all", "tab-CLIP", "tab-Blocks", "tab-Prompts", "tab-Text", "help"]
    order += [f"{part}:{at}" for at in (0, 1) for part in ROW] + ["add"]
    for part in order[:-1]:
        rows.has_focus(part)
        rows.press("Tab")
    rows.has_focus("add")
    for part in reversed(order[:-1]):
        rows.press("Shift+Tab")
        rows.has_focus(part)
    for part in ("on", "name", "menu", "remove"):
        rows.part(f"{part}:0").focus()
        rows.press("ArrowDown", "ArrowDown")
        rows.has_focus(f"{part}:1")
        rows.press("ArrowUp", "ArrowUp")
        rows.has_focus(f"{part}:0")


def test_switches_and_strengths(editor):
    """Steps go on, switches switch back, and what is typed leaves the focus on its field."""
    rows = add_list(editor, f"{A}\n{B}")
    rows.part("strength:0").focus()
    rows.press("ArrowUp", "ArrowUp", "ArrowUp")
    rows.becomes(A.replace("0.7", "0.85"), B)
    rows.press("0", ".", "7", "Enter")
    rows.becomes(A, B)
    rows.has_focus("strength:0")
    rows.press("9", "Escape", "ArrowDown", "ArrowUp")
    rows.becomes(A, B)
    rows.part("on:1").focus()
    rows.press("Space", "Space", "Space")
    rows.becomes(A, f"# {B}")
    rows.has_focus("on:1")
    rows.part("all").focus()
    rows.press("Space", "Enter", "Space")
    rows.becomes(A, B)
    rows.has_focus("all")


def test_columns_and_fields(editor):
    """The tabs stay where they are; a text field keeps its text, its caret and the focus."""
    rows = add_list(editor, f"{A}\n{B}")
    for tab in ("CLIP", "Blocks", "Prompts"):
        rows.part(f"tab-{tab}").focus()
        rows.press("Enter")
        rows.has_focus(f"tab-{tab}")
    rows.part("clip:0").focus()
    rows.press("ArrowUp", "ArrowUp")
    rows.becomes(A.replace(">", ":0.8>"), B)
    rows.press("Backspace", "Enter")
    rows.has_focus("clip:0")
    rows.press("Tab", "Tab", "Tab")
    rows.has_focus("blocks:0")
    editor.page.keyboard.type("mid:1")
    rows.press("Home")
    editor.page.keyboard.type("down:0.5 ")
    rows.press("Enter")
    editor.page.keyboard.type("x")
    assert rows.part("blocks:0").input_value() == "down:0.5 xmid:1", "the caret stays"
    rows.press("Backspace", "Tab")
    rows.has_focus("sliders:0")
    rows.press("Tab")
    rows.has_focus("prompt:0")
    editor.page.keyboard.type("a cat")
    rows.press("Tab")
    rows.has_focus("on:1")
    blocks = A.replace(">", ":blocks=down:0.5 mid:1:prompt=a cat>")
    rows.becomes(blocks, B)
    for field, left in (("blocks", A.replace(">", ":prompt=a cat>")), ("prompt", A)):
        rows.part(f"tab-{field.title()}" if field == "blocks" else "tab-Prompts").focus()
        rows.press("Enter")
        rows.part(f"{field}:0").fill("")
        rows.press("Enter")
        rows.becomes(left, B)
        rows.has_focus("name:0")  # the field is gone with its text
    rows.part("tab-Text").focus()
    rows.press("Enter")
    editor.page.wait_for_function("() => document.activeElement?.tagName === 'TEXTAREA'")
    rows.press("Escape")
    rows.has_focus("tab-Text")


def test_rows(editor):
    """Moving, adding, pasting, choosing a file and removing, with the focus on the row that it was on."""
    rows = add_list(editor, f"{A}\n{B}\n{C}")
    for part in ROW:
        rows.part(f"{part}:0").focus()
        rows.press("Alt+ArrowDown", "Alt+ArrowDown")
        rows.becomes(B, C, A)
        rows.has_focus(f"{part}:2")
        rows.press("Alt+ArrowUp", "Alt+ArrowUp")
        rows.becomes(A, B, C)
        rows.has_focus(f"{part}:0")
    rows.part("add").focus()
    rows.press("Enter")
    editor.page.keyboard.type("15_b")
    rows.press("Enter")
    added = B.replace("-0.5", "1")
    rows.becomes(A, B, C, added)
    rows.has_focus("add")
    rows.press("Enter", "Escape")
    rows.has_focus("add")
    rows.part("name:3").focus()
    rows.press("Enter")
    editor.page.keyboard.type("15_a")
    rows.press("Enter")
    chosen = added.replace("_b", "_a")
    rows.becomes(A, B, C, chosen)
    rows.has_focus("name:3")
    rows.part("name:1").focus()
    rows.press("Delete")
    rows.becomes(A, C, chosen)
    rows.has_focus("name:1")
    rows.part("remove:2").focus()
    rows.press("Enter")
    rows.becomes(A, C)
    rows.has_focus("remove:1")
    rows.press("Space", "Space")
    rows.becomes()
    rows.has_focus("add")
    rows.paste(f"{A} {B}")
    rows.becomes(A, B)
    rows.has_focus("name:1")


def test_undo_and_redo(editor):
    """Undo makes the node anew; the focus is on the same control, and works there."""
    node = add_list(editor, f"{A}\n{B}").node
    rows = ListWidget(editor, node)
    rows.part("on:1").focus()
    rows.press("Space")
    rows.becomes(A, f"# {B}")
    rows.press("ArrowUp", "Space")
    rows.becomes(f"# {A}", f"# {B}")
    steps = [(A, B), (A, f"# {B}"), (f"# {A}", f"# {B}")]
    for key, order in (("Control+z", (1, 0)), ("Control+y", (1, 2))):
        for i in order:
            with editor.reloading():
                rows.press(key)
            rows.becomes(*steps[i])
            rows.has_focus("on:0")
    rows.press("ArrowDown", "Space")
    rows.becomes(f"# {A}", B)
    rows.has_focus("on:1")


def test_composition_is_not_disturbed(editor):
    """While an input method composes, another change of the list leaves the field alone."""
    rows = add_list(editor, f"{A}\n{B}")
    rows.part("tab-Prompts").click()
    rows.part("prompt:0").focus()
    session = editor.page.context.new_cdp_session(editor.page)
    session.send("Input.imeSetComposition", {"text": "mo", "selectionStart": 2, "selectionEnd": 2})
    rows.part("on:1").evaluate("(button) => button.click()")
    rows.becomes(A, f"# {B}")
    session.send("Input.imeSetComposition", {"text": "墨", "selectionStart": 1, "selectionEnd": 1})
    session.send("Input.insertText", {"text": "墨"})
    assert rows.part("prompt:0").input_value() == "墨"
    rows.has_focus("prompt:0")
    rows.press("Enter")
    rows.becomes(A.replace(">", ":prompt=墨>"), f"# {B}")
