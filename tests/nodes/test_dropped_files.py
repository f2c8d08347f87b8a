"""Files that are dropped on the list, in both renderers: LoRAs, merges, recipes, and what is ComfyUI's."""

import json
import shutil

import pytest
from PIL import Image

import merge_ops
from tests.nodes.dropping import choose, drop, save_merge, toast
from tests.nodes.list_widget import add_list

A, B = "<lora:sd15_a.safetensors:1>", "<lora:sd15_b.safetensors:1>"
SOURCES = ["<lora:sd15_a.safetensors:0.7>", "<lora:sd15_b.safetensors:-0.5>"]
WIDGETS = """() => Object.fromEntries(app.graph.nodes[0].widgets.map(({ name, value }) => [name, value]))"""


@pytest.fixture
def loras(server):
    """The loras folder of the server; what a test adds is removed."""
    folder = server.base / "models" / "loras"
    before = set(folder.iterdir())
    yield folder
    for path in set(folder.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_lora_is_added(editor, loras):
    """One that lies in the loras folders, under whatever name; one step to undo; no workflow is opened."""
    rows = add_list(editor, A)
    loads = editor.page.evaluate("() => window.loads")
    drop(editor, rows.root, loras / "sd15_b.safetensors")
    rows.becomes(A, B)
    assert editor.page.evaluate("() => window.loads") == loads
    with editor.reloading():
        editor.page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    rows.becomes(A)


def test_found_by_its_content(editor, loras, tmp_path):
    """Not by its name: a copy with another name is found, another file of the same name and size is not."""
    renamed = tmp_path / "download (1).safetensors"
    shutil.copy(loras / "sd15_b.safetensors", renamed)
    rows = add_list(editor)
    drop(editor, rows.root, renamed)
    rows.becomes(B)
    changed = tmp_path / "sd15_b.safetensors"
    content = bytearray(renamed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    drop(editor, rows.root, changed)
    toast(
        editor, "sd15_b.safetensors is not in the loras folders. Put it into models/loras and drop it again."
    )
    rows.becomes(B)
    (loras / "epoch 2.safetensors").write_bytes(content)
    drop(editor, rows.root, changed)
    rows.becomes(B, "<lora:epoch 2.safetensors:1>")
    rows.root.locator('[data-part="name:1"]:not([aria-invalid])').wait_for()


def test_several_and_folders(editor, loras, tmp_path):
    """One step for all; those that are not there are named; a folder is looked through."""
    folder = tmp_path / "mine" / "deep"
    folder.mkdir(parents=True)
    for letter in "ab":
        shutil.copy(loras / f"sd15_{letter}.safetensors", folder / f"{letter}.safetensors")
    (folder / "notes.md").write_text("not for us")
    rows = add_list(editor)
    drop(editor, rows.root, tmp_path / "mine")
    rows.becomes(A, B)
    strange = save_merge(loras, tmp_path / "strange.safetensors", seed=99, method="dare_ties")
    drop(editor, rows.root, loras / "sd15_a.safetensors", strange)
    rows.becomes(A, B, A)
    toast(editor, "strange.safetensors is not in the loras folders")


def test_what_is_no_lora(editor, server, tmp_path):
    """It is said what it is, and no row is added."""
    rows = add_list(editor, A)
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 300)
    drop(editor, rows.root, tmp_path / "broken.safetensors")
    toast(editor, "broken.safetensors is not a safetensors file, or it is cut off.")
    drop(editor, rows.root, server.base / "models" / "checkpoints" / "tiny_sd15.safetensors")
    toast(editor, "the file holds whole weights of a model, not a LoRA")
    (tmp_path / "notes.txt").write_text("a fox")
    drop(editor, rows.root, tmp_path / "notes.txt")
    toast(editor, "There are no LoRAs in notes.txt.")
    rows.becomes(A)


def test_comfyui_opens_what_is_its_own(editor, tmp_path):
    """A workflow as JSON and a picture with one, dropped on the list, replace the graph as ever."""
    rows = add_list(editor, A, "LoraAlloyLoader")
    workflow = editor.workflow()
    workflow["nodes"][0]["widgets_values"][0] = B
    (tmp_path / "flow.json").write_text(json.dumps(workflow))
    with editor.reloading():
        drop(editor, rows.root, tmp_path / "flow.json")
    rows.becomes(B)
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    workflow["nodes"][0]["widgets_values"][0] = A
    info.add_text("workflow", json.dumps(workflow))
    Image.new("RGB", (8, 8)).save(tmp_path / "flow.png", pnginfo=info)
    with editor.reloading():
        drop(editor, rows.root, tmp_path / "flow.png")
    rows.becomes(A)


def test_a_merge_offers_its_sources(editor, loras, tmp_path):
    """Rows, method and parameters come in one step; the merge itself can be added; Escape does nothing."""
    merge = save_merge(loras, loras / "mix.safetensors", text_weights=[0.2, -0.5])
    rows = add_list(editor, B, "LoraAlloyLoader")
    drop(editor, rows.root, merge)
    menu = editor.page.locator(".lora-alloy-sets")
    assert "A merge of 2 LoRAs: ties, density 0.4" in menu.inner_text()
    editor.page.keyboard.press("Escape")
    rows.becomes(B)
    drop(editor, rows.root, merge)
    choose(editor, "Replace the list with its 2 sources")
    rows.becomes("<lora:sd15_a.safetensors:0.7:0.2>", SOURCES[1])
    wanted = {"method": "ties", "method.density": 0.4, "seed": 3, "rank": 4, "strength": 1, "space": "delta"}
    assert wanted.items() <= editor.page.evaluate(WIDGETS).items()
    (prompt,) = editor.prompt().values()
    assert wanted.items() <= prompt["inputs"].items()
    with editor.reloading():
        editor.page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    rows.becomes(B)
    assert editor.page.evaluate(WIDGETS)["method"] == "linear"
    drop(editor, rows.root, merge)
    choose(editor, "Add this merge")
    rows.becomes(B, "<lora:mix.safetensors:1>")
    drop(editor, rows.root, merge)
    choose(editor, "Add its 2 sources to the list")
    rows.becomes(B, "<lora:mix.safetensors:1>", "<lora:sd15_a.safetensors:0.7:0.2>", SOURCES[1])
    assert editor.page.evaluate(WIDGETS)["method"] == "linear", "rows that are added keep the node's method"


def test_a_merge_that_lies_elsewhere(editor, loras, tmp_path):
    """Its sources are offered; it says where to put the file; a source that was renamed is looked for."""
    shutil.copy(loras / "sd15_a.safetensors", tmp_path / "gone.safetensors")
    parts = [merge_ops.load(tmp_path / "gone.safetensors"), merge_ops.load(loras / "sd15_b.safetensors")]
    merge = tmp_path / "elsewhere.safetensors"
    merge_ops.save(merge_ops.merge(parts, weights=[0.7, -0.5]), merge)
    rows = add_list(editor)
    drop(editor, rows.root, merge)
    menu = editor.page.locator(".lora-alloy-sets")
    assert "Put it into models/loras" in menu.inner_text()
    assert "Not in the loras folders, so red in the list: gone" in menu.inner_text()
    assert "This node has no method" in menu.inner_text()
    choose(editor, "Load its 2 sources")
    rows.becomes("<lora:gone:0.7>", SOURCES[1])
    assert rows.part("name:0").get_attribute("aria-invalid") == "true"
    drop(editor, rows.root, merge)
    choose(editor, "Look for the missing ones among all LoRAs")
    choose(editor, "Replace the list with its 2 sources")
    rows.becomes(*SOURCES)


def test_files_are_opened(editor, loras, tmp_path):
    """The menu of sets opens what could be dropped: LoRAs, the text of a set, a recipe."""
    (tmp_path / "mine.txt").write_text(f"{A}\n# {B}\n")
    (tmp_path / "lorax.json").write_text(json.dumps(RECIPES["lorax.json"][0]))
    rows = add_list(editor, B, "LoraAlloyLoader")

    def open_files(*paths):
        rows.part("sets").click()
        with editor.page.expect_file_chooser() as chosen:
            choose(editor, "Open a file…")
        chosen.value.set_files(paths)

    open_files(loras / "sd15_a.safetensors", loras / "sd15_b.safetensors")
    rows.becomes(B, A, B)
    open_files(tmp_path / "mine.txt")
    rows.becomes(B, A, B, A, f"# {B}")
    open_files(tmp_path / "lorax.json")
    choose(editor, "Replace the list with its 2 sources")
    rows.becomes(*(f"<lora:sd15_{letter}.safetensors:0.3>" for letter in "ab"))


def test_sources_of_a_merge_that_is_chosen(editor, loras):
    """From the menu of sets, among all files; one that is no merge says so, and the list stays."""
    save_merge(loras, loras / "mixture.safetensors")
    editor.page.evaluate("() => app.refreshComboInNodes()")
    rows = add_list(editor, B, "LoraAlloyLoader")

    def pick(name):
        rows.part("sets").click()
        choose(editor, "Sources of a merge…")
        editor.page.locator(".lora-alloy-picker input").wait_for()
        editor.page.keyboard.type(name)
        editor.page.locator(".lora-alloy-picker [role=option]", has_text=name).first.wait_for()
        editor.page.keyboard.press("Enter")

    pick("sd15_a")
    toast(editor, "sd15_a cannot be loaded.")
    rows.becomes(B)
    pick("mixture")
    choose(editor, "Replace the list with its 2 sources")
    rows.becomes(*SOURCES)
    assert editor.page.evaluate(WIDGETS)["method"] == "ties"


PEFT = {"combination_type": "ties_svd", "svd_rank": 8, "params": {"density": 0.5}}
RECIPES = {  # name of the file -> its text, and what the method becomes
    "ours.json": (
        {"recipe": 1, "sources": [{"name": f"sd15_{each}", "weight": 0.3} for each in "ab"], **PEFT},
        {"method": "peft", "method.combination_type": "ties_svd", "method.svd_rank": 8},
    ),
    "lorax.json": (
        {"ids": ["sd15_a", "sd15_b"], "weights": [0.3, 0.3], "merge_strategy": "ties", "density": 0.5},
        {"method": "ties", "space": "factors"},
    ),
    "mergekit.yaml": (
        """merge_method: dare_linear
models:
  - model: sd15_a
    parameters: {weight: 0.3, density: 0.5}
  - model: sd15_b
    parameters: {weight: 0.3, density: 0.5}
""",
        {"method": "dare_linear", "space": "delta"},
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(editor, tmp_path, name):
    """Of each program, dropped and pasted."""
    recipe, method = RECIPES[name]
    text = recipe if isinstance(recipe, str) else json.dumps(recipe)
    (tmp_path / name).write_text(text)
    sources = [f"<lora:sd15_{letter}.safetensors:0.3>" for letter in "ab"]
    rows = add_list(editor, A, "LoraAlloyLoader")
    drop(editor, rows.root, tmp_path / name)
    choose(editor, "Replace the list with its 2 sources")
    rows.becomes(*sources)
    wanted = {"method.density": 0.5, **method}
    assert wanted.items() <= editor.page.evaluate(WIDGETS).items()
    rows.paste(text)
    choose(editor, "Add its 2 sources to the list")
    rows.becomes(*sources, *sources)


def test_a_bad_recipe(editor, tmp_path):
    """One sentence says what is wrong with it."""
    rows = add_list(editor, A)
    (tmp_path / "bad.json").write_text('{"recipe": 1, "sources": [], "method": "tise"}')
    drop(editor, rows.root, tmp_path / "bad.json")
    toast(editor, "bad.json cannot be loaded.")
    rows.becomes(A)


def test_sources_from_the_card(editor, loras):
    """The card of a merge loads what it was made from, in place of the row."""
    save_merge(loras, loras / "combined.safetensors")
    editor.page.evaluate("() => app.refreshComboInNodes()")
    rows = add_list(editor, "<lora:combined:1>", "LoraAlloyLoader")
    rows.root.locator('.row:not(.missing) [data-part="menu:0"]').click()
    editor.page.locator('.lora-alloy-menu [data-action="info"]').click()
    editor.page.locator(".lora-alloy-card").get_by_role("button", name="Load its sources…").click()
    choose(editor, "Replace the list with its 2 sources")
    rows.becomes(*SOURCES)
    assert editor.page.evaluate(WIDGETS)["method.density"] == 0.4
