"""Sliders over block strengths: what they write is what a merge uses, and a text stays until one moves."""

import math
import random
import urllib.parse

import pytest
import torch
from safetensors.torch import save_file

from merge_ops import BlockStrengths
from merge_ops.blocks.sliders import SORTS, places_of, sorts_of
from tests.blocks.test_sliders import MODELS
from tests.nodes.editor import LIMIT
from tests.nodes.list_widget import add_list

WRITE = """async ([found, all]) => {
    const { writeStrengths } = await import('/extensions/any_folder-name/js/list/block_text.js')
    return all.map((values) => writeStrengths(found, values))
}"""
FIELD = ".lora-alloy-sliders [role=slider]"


@pytest.fixture(scope="module")
def files(server):
    """Tiny files with the layer names of four models, the later blocks stronger; their names."""
    for name, layers in MODELS.items():
        generator = torch.Generator().manual_seed(7)
        tensors = {}
        for number, layer in enumerate(layers):
            tensors[f"{layer}.lora_A.weight"] = torch.randn(2, 8, generator=generator)
            tensors[f"{layer}.lora_B.weight"] = (1 + number) * torch.randn(8, 2, generator=generator)
        save_file(tensors, server.base / "models" / "loras" / f"sliders_{name}.safetensors")
    return {name: f"sliders_{name}" for name in MODELS}


def ask(server, name, text=""):
    return server.get(f"/lora_alloy/blocks?{urllib.parse.urlencode({'name': name, 'text': text})}")


@pytest.fixture
def sliders(editor):
    """A function that opens the sliders of a list's first row, and finds one by its part."""

    def open_sliders(rows):
        rows.part("sliders:0").click()
        editor.page.wait_for_selector(FIELD)
        return lambda part: editor.page.locator(f'.lora-alloy-sliders [data-part="{part}"]')

    return open_sliders


@pytest.mark.parametrize("model", MODELS)
def test_what_sliders_write_is_what_a_merge_uses(server, editor_page, files, model):
    """For random values, many of them alike: every layer gets the product that is shown."""
    found = ask(server, files[model])
    names = [block["name"] for block in found["blocks"]]
    sorts = [sort["name"] for sort in found["sorts"]]
    chance = random.Random(model)
    tries = [dict.fromkeys([*names, *sorts], 1), dict.fromkeys(names, 0) | dict.fromkeys(sorts, 1)]
    for few in range(1, 40):
        pool = [round(chance.uniform(-1, 2), 2) for _ in range(1 + few % 5)] + [1.0]
        tries.append({name: chance.choice(pool) for name in (*names, *sorts)})
        tries[-1] |= dict.fromkeys(chance.sample(names, len(names) * 2 // 3), pool[0])
    texts = editor_page.page.evaluate(WRITE, [found, tries])
    assert texts[0] == "" and {term.split(":")[1] for term in texts[1].split()} == {"0"}
    of_sort = sorts_of(MODELS[model])
    for text, values in zip(texts, tries, strict=True):
        strengths = BlockStrengths.parse(text or "ALL")
        for place in places_of(MODELS[model]):
            for layer in place.layers:
                its = [values[sort] for sort in SORTS if layer in of_sort.get(sort, ())]
                wanted = values[place.selector] * math.prod(its)
                assert strengths.factor(layer) == pytest.approx(wanted, abs=1e-9), (text, layer)
    again = ask(server, files[model], texts[-1])
    assert again["exact"] and again["values"] == pytest.approx(tries[-1])


def test_texts_are_short(server, editor_page, files):
    """Groups and neighbours are said once."""
    found = ask(server, files["flux"])
    values = dict.fromkeys(found["values"], 1)
    values |= (
        {f"double.{i}": 0.5 for i in range(19)} | {f"single.{i}": 0 for i in range(3, 9)} | {"attn": 0.8}
    )
    (text,) = editor_page.page.evaluate(WRITE, [found, [values]])
    assert text == "double:0.5 single.3-8:0 attn:0.8"


def test_the_request(server, files):
    """Norms are those of the layers; what is no file or no text is said, and nothing outside is read."""
    found = ask(server, files["sd15"], "down:0.5 q:2")
    blocks = {block["name"]: block for block in found["blocks"]}
    total = sum(block["norm"] ** 2 for block in blocks.values())
    assert sum(block["layers"] for block in blocks.values()) == len(MODELS["sd15"])
    assert blocks["out11"]["norm"] > blocks["in1"]["norm"] > 0 and total > 0
    assert not found["exact"] and found["problem"] is None and found["values"]["in4"] == 0.5
    assert "unknown block selector 'dwon'" in ask(server, files["sd15"], "dwon:1")["problem"]
    for query in ("", "?name=gone", "?name=../../user/comfyui.db", "?name=/etc/passwd"):
        with pytest.raises(OSError, match="400"):
            server.get(f"/lora_alloy/blocks{query}")


def test_by_keyboard(editor, sliders):
    """Steps, ends, back to 1; one undo step for each time that a key is let go."""
    rows = add_list(editor, "<lora:sd15_a.safetensors:1:blocks=in1:0.5>")
    part = sliders(rows)
    line = editor.page.locator(".lora-alloy-sliders output")
    part("in1").focus()
    editor.page.keyboard.press("ArrowUp")
    rows.becomes("<lora:sd15_a.safetensors:1:blocks=in1:0.55>")
    editor.page.keyboard.press("Shift+ArrowDown")
    rows.becomes("<lora:sd15_a.safetensors:1:blocks=in1:0.54>")
    editor.page.keyboard.down("End")
    assert line.inner_text() == "in1:2" and rows.value.endswith("in1:0.54>"), "not yet let go"
    editor.page.keyboard.up("End")
    rows.becomes("<lora:sd15_a.safetensors:1:blocks=in1:2>")
    editor.page.keyboard.press("Delete")
    rows.becomes("<lora:sd15_a.safetensors:1>")
    editor.page.keyboard.press("Escape")
    assert not editor.page.locator(".lora-alloy-sliders").count()
    for blocks in (":blocks=in1:2", ":blocks=in1:0.54", ":blocks=in1:0.55", ":blocks=in1:0.5"):
        editor.page.keyboard.press("Control+z")
        rows.becomes(f"<lora:sd15_a.safetensors:1{blocks}>")


def test_by_mouse(editor, sliders):
    """Dragging to the bottom is 0, to the top 2; a double click is 1; a group moves all that is in it."""
    rows = add_list(editor, "<lora:sd15_a.safetensors:1:blocks=mid:1>")
    part = sliders(rows)

    def drag(name, share):
        box = part(name).locator(".track").bounding_box()
        x = box["x"] + box["width"] / 2
        editor.page.mouse.move(x, box["y"] + box["height"] / 2)
        editor.page.mouse.down()
        for i in range(1, 4):
            editor.page.mouse.move(x, box["y"] + box["height"] * (0.5 + (1 - share - 0.5) * i / 3))
        editor.page.mouse.up()

    drag("mid", 0)
    rows.becomes("<lora:sd15_a.safetensors:1:blocks=mid:0>")
    drag("all:down", 1)
    rows.becomes("<lora:sd15_a.safetensors:1:blocks=down:2 mid:0>")
    drag("in1", 0.25)
    rows.becomes("<lora:sd15_a.safetensors:1:blocks=down:2 in1:0.5 mid:0>")
    assert part("all:down").get_attribute("aria-valuetext") == "mixed"
    part("mid").dblclick()
    rows.becomes("<lora:sd15_a.safetensors:1:blocks=down:2 in1:0.5>")
    part("reset").click()
    rows.becomes("<lora:sd15_a.safetensors:1>")


@pytest.mark.parametrize("blocks", ["INS", "down:0.5 q:2", "dwon:1", "1,0,0,0,.5,0,0,0,1,1,1,1,1,1,1,1,1"])
def test_a_text_stays_until_a_slider_moves(editor, sliders, blocks):
    """Presets, vectors and what sliders cannot say."""
    line = f"<lora:sd15_a.safetensors:1:blocks={blocks}>"
    rows = add_list(editor, line)
    part = sliders(rows)
    note = editor.page.locator(".lora-alloy-sliders .note").inner_text()
    assert bool(note) == (blocks in ("down:0.5 q:2", "dwon:1"))
    part("in1").focus()
    editor.page.keyboard.press("Tab")
    part("mid").click()
    editor.page.keyboard.press("Escape")
    rows.becomes(line)


def test_a_file_that_is_gone(editor, sliders):
    """The sliders say so instead."""
    rows = add_list(editor, "<lora:gone:1:blocks=mid:0>")
    rows.part("sliders:0").click()
    said = editor.page.locator(".lora-alloy-sliders .body")
    editor.page.wait_for_function(
        "() => document.querySelector('.lora-alloy-sliders .body')?.textContent.includes('no LoRA file')",
        timeout=LIMIT,
    )
    assert "'gone'" in said.inner_text()
    editor.problems.clear()  # the browser logs the answer
