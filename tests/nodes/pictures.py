"""The pictures of the help pages and of the README's tour, from the running editor.

    python -m tests.nodes.pictures SERVER_URL BASE_FOLDER [PART ...]

BASE_FOLDER is the server's; LoRA files for the pictures are put into it. The server has this pack and
``demo_digits.py`` in its custom_nodes.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image

from tests.nodes.editor import CHROMIUM, FLAGS, ROOT, Editor

DOCS, TOUR = ROOT / "web" / "docs", ROOT / "docs" / "tour"
NAMES = [
    "characters/mia", "characters/robot_fox", "detail/film_grain", "detail/sharp_eyes", "style/ink",
    "style/ink_wash", "style/neon", "style/watercolor",
]  # fmt: skip
SETTINGS = {"Comfy.VueNodes.Enabled": True, "Comfy.Locale": "en", "Comfy.EnableTooltips": False}
THREE = "<lora:style/ink:0.8>\n<lora:characters/mia:0.7:0.5>\n# <lora:detail/film_grain:0.4>"
BLOCKS = "<lora:style/ink:0.8:blocks=down:0.5 mid:1>\n<lora:characters/mia:0.7>"
DEMO = "\n".join(f"<lora:demo/{name}:1>" for name in ("six", "seven", "neon", "slant"))
TWO = "<lora:demo/eight:1>\n<lora:demo/neon:1>"
PROMPTS = "<lora:sd15_a:0.5:0:prompt=an ink fox|an ink harbour>\n<lora:sd15_b:0.5:0:prompt=mia>"
SAVED = "merged_00001_.safetensors"
BUILD = """([nodes, scale]) => {
    app.graph.clear()
    app.graph.state.lastNodeId = Date.now() % 1e9 // values are kept by numbers
    const made = {}
    for (const [id, type, at, size, values, links] of nodes) {
        const node = made[id] = LiteGraph.createNode(type)
        app.graph.add(node)
        node.pos = at
        for (const [name, value] of Object.entries(values)) {
            const widget = node.widgets.find((other) => other.name === name)
            widget.value = value
            widget.callback?.(value)
        }
        for (const [name, from, slot] of links) {
            made[from].connect(slot, node, node.inputs.findIndex((input) => input.name === name))
        }
        if (size) node.setSize(size)
    }
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [0, 0]
    app.canvas.setDirty(true, true)
    return Object.fromEntries(Object.entries(made).map(([id, node]) => [id, String(node.id)]))
}"""
# type: size, values
ALONE = {
    "LoraAlloyLoader": ([400, 10], {"loras": THREE, "method": "ties", "method.density": 0.4}),
    "LoraAlloyStack": ([400, 10], {"loras": BLOCKS}),
    "LoraAlloyMethod": ([300, 10], {"method": "dare_ties"}),
    "LoraAlloyApply": ([300, 10], {"strength_model": 1.2}),
    "LoraAlloySweep": ([320, 10], {"parameter": "strength mia", "values": "0.4..1 step 0.3"}),
}
HIDDEN = """.z-999, .p-toast, .p-toast *, .graph-canvas-panel > :not(canvas), .side-tool-bar-container
    { visibility: hidden !important }"""


def shot(page, path, box, colours=64):
    """What is in a box of the page, in few colours."""
    left, top, right, bottom = box
    page.mouse.move(5, 995)
    page.wait_for_timeout(300)
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    picture = Image.open(io.BytesIO(page.screenshot(clip=clip, style=HIDDEN))).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)


def box_of(page, numbers, margin=14):
    """Around some nodes, and what else is given as selectors."""
    boxes = []
    for one in numbers:
        selector = f'[data-node-id="{one}"]' if one.isdigit() else one
        found = page.locator(selector).first.bounding_box()
        boxes.append((found["x"], found["y"], found["x"] + found["width"], found["y"] + found["height"]))
    lows = [min(box[i] for box in boxes) - margin for i in (0, 1)]
    return (*(max(0, low) for low in lows), *(max(box[i] for box in boxes) + margin for i in (2, 3)))


def build(editor, nodes, scale=1.0):
    """Put nodes on the canvas; gives their numbers by their names."""
    numbers = editor.page.evaluate(BUILD, [nodes, scale])
    editor.page.wait_for_timeout(1500)
    return numbers


def run(editor):
    """Queue the graph and wait until it has run; it must succeed."""
    with editor.page.expect_response(lambda answer: answer.url.endswith("/api/prompt")) as answer:
        editor.page.evaluate("() => app.queuePrompt(0, 1)")
    number = answer.value.json()["prompt_id"]
    ended = f"async () => (await (await fetch('/history/{number}')).json())['{number}']?.status.status_str"
    while (status := editor.page.evaluate(ended)) is None:
        editor.page.wait_for_timeout(500)
    assert status == "success", status
    editor.page.wait_for_timeout(2500)


def alone(editor):
    """The nodes that need not run."""
    for kind, (size, values) in ALONE.items():
        numbers = build(editor, [["n", kind, [120, 120], size, values, []]])
        shot(editor.page, DOCS / f"{kind}.png", box_of(editor.page, numbers.values()))


def merged(editor):
    """Merge, Save and Recipe, with what they say after they ran."""
    nodes = [
        ["stack", "LoraAlloyStack", [120, 120], [380, 10], {"loras": DEMO}, []],
        ["method", "LoraAlloyMethod", [120, 440], [300, 10], {"method": "ties"}, []],
        ["merge", "LoraAlloyMerge", [560, 120], [420, 220],
         {}, [("stack", "stack", 0), ("method", "method", 0)]],
        ["save", "LoraAlloySave", [1030, 120], [480, 160], {}, [("lora", "merge", 0)]],
    ]  # fmt: skip
    numbers = build(editor, nodes)
    run(editor)
    shot(editor.page, DOCS / "LoraAlloyMerge.png", box_of(editor.page, [numbers["merge"]]))
    shot(editor.page, DOCS / "LoraAlloySave.png", box_of(editor.page, [numbers["save"]]))
    editor.page.evaluate("() => app.refreshComboInNodes()")
    editor.page.wait_for_timeout(1500)
    values = {"lora_name": SAVED}
    numbers = build(editor, [["recipe", "LoraAlloyRecipe", [120, 120], [460, 10], values, []]])
    run(editor)
    shot(editor.page, DOCS / "LoraAlloyRecipe.png", box_of(editor.page, numbers.values()))


def inspected(editor):
    """Inspect LoRAs with its plot."""
    nodes = [
        ["stack", "LoraAlloyStack", [100, 120], [360, 10], {"loras": TWO}, []],
        ["inspect", "LoraAlloyInspect", [520, 120], None, {}, [("stack", "stack", 0)]],
    ]
    numbers = build(editor, nodes)
    run(editor)
    shot(editor.page, DOCS / "LoraAlloyInspect.png", box_of(editor.page, [numbers["inspect"]]), 48)
    shot(editor.page, TOUR / "inspect.png", box_of(editor.page, numbers.values()))


def swept(editor):
    """Two sweeps, merged, drawn by the demo's model, in a grid."""
    nodes = [
        ["stack", "LoraAlloyStack", [60, 120], [400, 10], {"loras": DEMO}, []],
        ["first", "LoraAlloySweep", [60, 520], [400, 10],
         {"parameter": "method", "values": "magnitude_prune, ties, dare_ties"}, []],
        ["second", "LoraAlloySweep", [60, 860], [400, 10],
         {"parameter": "density", "values": "0.3, 0.5, 0.8"}, [("method", "first", 0)]],
        ["merge", "LoraAlloyMerge", [520, 120], [400, 10],
         {}, [("stack", "stack", 0), ("method", "second", 0)]],
        ["draw", "DemoDigits", [520, 640], [400, 10], {}, [("lora", "merge", 0)]],
        ["grid", "LoraAlloyGrid", [980, 120], [760, 980],
         {}, [("images", "draw", 0), ("labels", "second", 1)]],
    ]  # fmt: skip
    numbers = build(editor, nodes, 0.75)
    run(editor)
    shot(editor.page, DOCS / "LoraAlloyGrid.png", box_of(editor.page, [numbers["grid"]]), 24)
    shot(editor.page, TOUR / "sweep.png", box_of(editor.page, numbers.values()), 96)


def learned(editor):
    """Record, Measure and Distill on the demo's LoRAs for a tiny model; needs ``tiny_sd15`` and its LoRAs."""
    small = {"width": 64, "height": 64, "steps": 4}
    nodes = [
        ["model", "CheckpointLoaderSimple", [60, 120], [300, 100],
         {"ckpt_name": "tiny_sd15.safetensors"}, []],
        ["record", "LoraAlloyRecord", [400, 120], [430, 620], {"loras": PROMPTS, **small},
         [("model", "model", 0), ("clip", "model", 1)]],
        ["distill", "LoraAlloyDistill", [870, 120], [420, 300], {"steps": 12, "learning_rate": 0.01},
         [("recording", "record", 0)]],
        ["measure", "LoraAlloyMeasure", [1330, 120], None, {"methods": "linear, even"},
         [("recording", "record", 0), ("lora", "distill", 0)]],
    ]  # fmt: skip
    numbers = build(editor, nodes, 0.75)
    run(editor)
    for kind in ("record", "distill", "measure"):
        shot(editor.page, DOCS / f"LoraAlloy{kind.title()}.png", box_of(editor.page, [numbers[kind]]), 48)


def of_models(editor):
    """Merge Loaded LoRAs behind two Load LoRA nodes, and Extract LoRA of the result."""

    def load(file):
        return {"lora_name": f"{file}.safetensors", "strength_model": 0.7, "strength_clip": 0.7}

    nodes = [
        ["base", "CheckpointLoaderSimple", [60, 120], [300, 100],
         {"ckpt_name": "tiny_sd15.safetensors"}, []],
        ["a", "LoraLoader", [60, 320], [300, 130], load("sd15_a"),
         [("model", "base", 0), ("clip", "base", 1)]],
        ["b", "LoraLoader", [60, 560], [300, 130], load("sd15_b"), [("model", "a", 0), ("clip", "a", 1)]],
        ["merge", "LoraAlloyMergeLoaded", [420, 120], [420, 200], {"method": "ties"},
         [("model", "b", 0), ("clip", "b", 1)]],
        ["extract", "LoraAlloyExtract", [900, 120], [420, 200], {"rank": 8},
         [("tuned", "merge", 0), ("base", "base", 0)]],
        ["save", "LoraAlloySave", [1360, 120], [420, 160], {}, [("lora", "extract", 0)]],
    ]  # fmt: skip
    numbers = build(editor, nodes, 0.75)
    run(editor)
    shot(editor.page, DOCS / "LoraAlloyMergeLoaded.png", box_of(editor.page, [numbers["merge"]]))
    shot(editor.page, DOCS / "LoraAlloyExtract.png", box_of(editor.page, [numbers["extract"]]))


def listed(editor):
    """The loader with its methods, and the list of files."""
    page = editor.page
    values = {"loras": THREE, "method": "ties", "method.density": 0.4}
    nodes = [["n", "LoraAlloyLoader", [120, 120], [420, 10], values, []]]
    number = build(editor, nodes)["n"]
    page.locator(f'[data-node-id="{number}"] [role=combobox]').first.click()
    page.wait_for_timeout(800)
    shot(page, TOUR / "loader.png", box_of(page, [number, "[role=listbox]"]))
    page.keyboard.press("Escape")
    page.locator(f'[data-node-id="{number}"] [data-part=add]').click()
    page.keyboard.type("ink", delay=50)
    page.wait_for_timeout(500)
    shot(page, TOUR / "picker.png", box_of(page, [number, ".lora-alloy-picker"]))
    page.keyboard.press("Escape")


def prepare(base):
    """LoRA files: those of the demo, and one of them under names that a list would have."""
    demo, loras = ROOT / "merge_ops" / "demo" / "assets" / "loras", base / "models" / "loras"
    shutil.copytree(demo, loras / "demo", dirs_exist_ok=True)
    for name in NAMES:
        (loras / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(demo / "six.safetensors", loras / f"{name}.safetensors")
    for old in (base / "output" / "loras").glob("merged_*"):
        old.unlink()
    (base / "output" / "loras").mkdir(parents=True, exist_ok=True)


PARTS = (alone, listed, merged, inspected, swept, of_models, learned)


def main(url, base, *names):
    """Make all of them, or those of some functions."""
    from playwright.sync_api import sync_playwright

    prepare(Path(base))
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        editor = Editor(browser, url, SETTINGS)
        editor.page.set_viewport_size({"width": 1600, "height": 1000})
        for part in PARTS:
            if not names or part.__name__ in names:
                part(editor)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
