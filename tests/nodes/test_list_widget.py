"""The list widget in both renderers: what mouse and keyboard do to the rows."""

import re

import pytest

from tests.nodes.list_widget import add_list

A, B, C = "<lora:sd15_a.safetensors:0.7>", "<lora:sd15_b.safetensors:-0.5>", "<lora:gone:1>"


def test_add(editor):
    """The picker searches by parts of names; Escape leaves everything as it is."""
    rows = add_list(editor)
    rows.part("add").click()
    editor.page.keyboard.press("Escape")
    rows.becomes()
    rows.part("add").click()
    editor.page.keyboard.type("15_b")
    assert "sd15_b" in editor.page.locator('.lora-alloy-picker [aria-selected="true"]').inner_text()
    editor.page.keyboard.press("Enter")
    rows.becomes("<lora:sd15_b.safetensors:1>")
    editor.page.keyboard.press("Enter")  # the focus is on Add again
    editor.page.locator('.lora-alloy-picker [data-file="sd15_a.safetensors"]').click()
    rows.becomes("<lora:sd15_b.safetensors:1>", "<lora:sd15_a.safetensors:1>")


def test_choose_another_file(editor):
    """By keyboard alone; the strengths stay."""
    rows = add_list(editor, A)
    rows.part("name:0").focus()
    editor.page.keyboard.press("Enter")
    editor.page.keyboard.type("sd15_")
    first = editor.page.locator(".lora-alloy-picker [role=option]").first.get_attribute("data-file")
    second = editor.page.locator(".lora-alloy-picker [role=option]").nth(1).get_attribute("data-file")
    assert first != second
    editor.page.keyboard.press("ArrowDown")
    editor.page.keyboard.press("Enter")
    rows.becomes(f"<lora:{second}:0.7>")


def test_drag_a_strength(editor):
    """A pixel is 0.01, with Shift 0.001, and dragging ends at 10."""
    rows = add_list(editor, A)
    rows.drag("strength:0", right=-50)
    rows.becomes("<lora:sd15_a.safetensors:0.2>")
    rows.drag("strength:0", right=50, keys=["Shift"])
    rows.becomes("<lora:sd15_a.safetensors:0.25>")
    rows.drag("strength:0", right=1200)
    rows.becomes("<lora:sd15_a.safetensors:10>")


@pytest.mark.parametrize(
    ("keys", "strength"),
    [
        (["ArrowUp"], "0.75"),
        (["Shift+ArrowDown"], "0.69"),
        (["1", ".", "5", "Enter"], "1.5"),
        (["Enter", "-", "2", "Tab"], "-2"),
        (["1", "2", "Enter"], "12"),
        (["3", "Escape"], "0.7"),
        (["1", "0", "1", "Enter"], "0.7"),
        (["Backspace", "Enter"], "0.7"),
    ],
)
def test_strength_by_keyboard(editor, keys, strength):
    """Steps, typing, leaving; what is no strength changes nothing."""
    rows = add_list(editor, A)
    rows.part("strength:0").focus()
    for key in keys:
        editor.page.keyboard.press(key)
    rows.becomes(f"<lora:sd15_a.safetensors:{strength}>")


def test_clip_strengths(editor):
    """Hidden until asked for; empty is as the strength."""
    rows = add_list(editor, A)
    assert rows.part("clip:0").count() == 0
    rows.part("tab-CLIP").click()
    rows.part("clip:0").click()
    editor.page.keyboard.type("0.25")
    editor.page.keyboard.press("Enter")
    rows.becomes("<lora:sd15_a.safetensors:0.7:0.25>")
    rows.part("clip:0").focus()
    editor.page.keyboard.press("Backspace")
    editor.page.keyboard.press("Enter")
    rows.becomes(A)


def test_block_strengths(editor):
    """Hidden until asked for; kept in the text."""
    rows = add_list(editor, A)
    assert rows.part("blocks:0").count() == 0
    rows.part("tab-Blocks").click()
    rows.part("blocks:0").fill("down:0.5 mid:1")
    editor.page.keyboard.press("Enter")
    rows.becomes("<lora:sd15_a.safetensors:0.7:blocks=down:0.5 mid:1>")
    rows.part("blocks:0").fill("")
    editor.page.keyboard.press("Tab")
    rows.becomes(A)


def test_prompts(editor):
    """Hidden until asked for; any sign may be in one; pasted and moved with its row."""
    rows = add_list(editor, A)
    assert rows.part("prompt:0").count() == 0
    rows.part("tab-Prompts").click()
    rows.part("prompt:0").fill("a cat: 1 > 0, red|a dog")
    editor.page.keyboard.press("Enter")
    prompted = "<lora:sd15_a.safetensors:0.7:prompt=a cat: 1 \\> 0, red|a dog>"
    rows.becomes(prompted)
    assert rows.part("prompt:0").input_value() == "a cat: 1 > 0, red|a dog"
    rows.part("prompt:0").fill("another")
    editor.page.keyboard.press("Escape")
    rows.becomes(prompted)
    rows.paste(prompted.replace("sd15_a", "sd15_b"))
    rows.becomes(prompted, prompted.replace("sd15_a", "sd15_b"))
    assert rows.part("prompt:1").input_value() == "a cat: 1 > 0, red|a dog"
    rows.part("tab-Prompts").click()
    assert rows.part("prompt:0").count() == 1, "shown while there is one"
    rows.part("prompt:1").fill("")
    editor.page.keyboard.press("Tab")
    rows.becomes(prompted, B.replace("-0.5", "0.7"))
    rows.part("name:0").focus()
    editor.page.keyboard.press("Alt+ArrowDown")
    rows.becomes(B.replace("-0.5", "0.7"), prompted)


def test_reorder(editor):
    """By the handle, and with Alt and the arrow keys; the focus goes along, remarks stay."""
    rows = add_list(editor, f"{A}\n# my remark\n{B}\n{C}")
    rows.drag("handle:0", down=60)
    rows.becomes("# my remark", B, C, A)
    rows.drag("handle:2", down=-60)
    rows.becomes("# my remark", A, B, C)
    rows.part("name:0").focus()
    editor.page.keyboard.press("Alt+ArrowDown")
    editor.page.keyboard.press("Alt+ArrowDown")
    rows.becomes("# my remark", B, C, A)
    editor.page.keyboard.press("Alt+ArrowUp")
    rows.becomes("# my remark", B, A, C)


def test_remove(editor):
    """With the button, and with Delete, which must not delete the node."""
    rows = add_list(editor, f"{A}\n{B}\n{C}")
    rows.part("remove:1").click()
    rows.becomes(A, C)
    rows.part("name:0").focus()
    editor.page.keyboard.press("Delete")
    rows.becomes(C)
    editor.page.keyboard.press("Delete")
    rows.becomes()


def test_switches(editor):
    """One, and all; the count follows."""
    rows = add_list(editor, f"{A}\n{B}\n{C}")
    count = rows.root.locator(".count")
    rows.part("on:1").click()
    rows.becomes(A, f"# {B}", C)
    assert count.inner_text() == "2 of 3 on"
    assert rows.part("all").get_attribute("aria-checked") == "mixed"
    rows.part("all").click()
    rows.becomes(A, B, C)
    rows.part("all").focus()
    editor.page.keyboard.press("Space")
    rows.becomes(f"# {A}", f"# {B}", f"# {C}")
    assert count.inner_text() == "0 of 3 on"


def test_missing_files_are_red(editor):
    """And say so; a short name that is clear is not missing."""
    rows = add_list(editor, f"{C}\n<lora:sd15_a:1>\nfox")
    color = "(element) => getComputedStyle(element).color"
    red = rows.part("name:0").evaluate(color)
    assert red != rows.part("name:1").evaluate(color)
    assert rows.part("name:0").get_attribute("aria-invalid") == "true"
    assert "is not in the loras folders" in rows.part("name:0").get_attribute("title")
    assert rows.part("name:1").get_attribute("aria-invalid") is None
    assert "fox" in rows.root.locator(".unreadable").inner_text()


def test_a_pattern_is_not_missing(editor):
    """The row says how many files it stands for, and which; one that matches nothing is red."""
    widget = add_list(editor, "<lora:sd15_?:1>\n<lora:gone_*:1>")
    found, gone = widget.part("name:0"), widget.part("name:1")
    assert re.fullmatch(r"sd15_\? \(\d+ files\)", found.inner_text().strip())
    assert "sd15_a" in found.get_attribute("title") and found.get_attribute("aria-invalid") is None
    assert gone.get_attribute("aria-invalid") == "true"
    assert "not in the loras folders" in gone.get_attribute("title")


def test_text(editor):
    """The list as text; what is typed is the value at once."""
    rows = add_list(editor, A)
    rows.part("tab-Text").click()
    area = rows.root.locator("textarea")
    area.fill(f"# mine\n{B}")
    assert rows.value == f"# mine\n{B}"
    rows.part("tab-Text").click()
    rows.becomes("# mine", B)


def test_paste(editor):
    """A1111 prompts and rows of other packs become rows, with the names of the files."""
    rows = add_list(editor, A)
    rows.paste("masterpiece, <lora:sd15_b:0.8> fox, <lora:nowhere:0.3:0.2>")
    rows.becomes(A, "<lora:sd15_b.safetensors:0.8>", "<lora:nowhere:0.3:0.2>")
    rows.paste("no tags in here")
    assert len(rows.value.splitlines()) == 3


@pytest.mark.parametrize("width", [225, 500])
def test_nothing_is_clipped(editor, width):
    """Names have room, and the list shows every row without scrolling, in narrow nodes and wide ones."""
    rows = add_list(editor, f"{A}\n{B}\n<lora:sd15_a:1:0.5>\n{C}")
    editor.page.evaluate("(w) => { const node = app.graph.nodes[0]; node.setSize([w, node.size[1]]) }", width)
    editor.drawn()
    frame = rows.root.bounding_box()
    for name in ("tab-Text", "name:3", "clip:3", "remove:3", "add"):
        box = rows.part(name).bounding_box()
        assert box["x"] >= frame["x"] - 1 and box["x"] + box["width"] <= frame["x"] + frame["width"] + 1
        assert box["y"] + box["height"] <= frame["y"] + frame["height"] + 1
    assert rows.part("name:0").bounding_box()["width"] > 80
    assert rows.root.locator(".rows").evaluate("(list) => list.scrollHeight <= list.clientHeight")


def test_new_files_are_seen(editor, server):
    """R reads the list of files again."""
    name = f"fresh{'AB'[editor.nodes2]}"
    rows = add_list(editor, f"<lora:{name}:1>")
    assert rows.part("name:0").get_attribute("aria-invalid") == "true"
    loras = server.base / "models" / "loras"
    (loras / f"{name}.safetensors").write_bytes((loras / "sd15_a.safetensors").read_bytes())
    try:
        editor.page.locator("body").press("r")
        rows.root.locator('[data-part="name:0"]:not([aria-invalid])').wait_for()
    finally:
        (loras / f"{name}.safetensors").unlink()
