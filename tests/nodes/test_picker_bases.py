"""Base models in the picker, in both renderers: tags, the filter, what does not fit, the card."""

import json
import shutil
import urllib.error
from collections import Counter

import pytest

from tests.nodes.list_widget import add_list
from tests.nodes.lora_files import write_lora

FOLDER = "bases"
OPTION = ".lora-alloy-picker [role=option]"
CHIP = ".lora-alloy-picker [role=radio]"
REFRESH = "async () => { await app.refreshComboInNodes() }"
# a loader in front of a LoRA of ComfyUI and a reroute, which all hand on one model
CONNECT = """([type, widget, file, target]) => {
    const [loader, lora, reroute] = [type, 'LoraLoaderModelOnly', 'Reroute'].map((name, i) => {
        const node = LiteGraph.createNode(name)
        node.pos = [-700 + 220 * i, 400]
        app.graph.add(node)
        return node
    })
    loader.widgets.find(({ name }) => name === widget).value = file
    loader.connect(0, lora, 0)
    lora.connect(0, reroute, 0)
    reroute.connect(0, app.graph.getNodeById(target), 0)
}"""


@pytest.fixture(scope="module")
def folder(server, editor_page):
    """Files of three models, one that states what it is, and one that nobody can name."""
    made = server.base / "models" / "loras" / FOLDER
    write_lora(made / "a_sdxl.safetensors", "sdxl", only="attn2")
    write_lora(
        made / "b_pony.safetensors",
        "sdxl",
        {"ss_sd_model_name": "ponyDiffusionV6XL.safetensors"},
        only="attn2",
    )
    write_lora(made / "c_sd1.safetensors", "sd1", only="attn2")
    write_lora(made / "d_flux.safetensors", "flux", only="single_blocks.0.")
    (made / "e_what.safetensors").write_bytes(b"this is no LoRA")
    editor_page.page.evaluate(REFRESH)
    yield made
    shutil.rmtree(made)
    editor_page.page.evaluate(REFRESH)


@pytest.fixture
def opened(editor, folder):
    """Opens the picker of a new node, searches these files, and waits until they are told apart."""

    def show(kind="LoraAlloyStack", before=None):
        rows = add_list(editor, kind=kind)
        if before:
            before(rows)
        rows.part("add").click()
        editor.page.keyboard.type(f"{FOLDER}/")
        editor.page.locator(CHIP).filter(has_text="Flux.1").wait_for()
        editor.page.locator(CHIP).filter(has_text="Unknown").wait_for()
        return rows

    yield show
    if editor.page.locator(CHIP).count():
        editor.page.locator(CHIP).first.click()  # the next test starts with all files


def listed(editor):
    """The files in the list, each with its tag."""
    return editor.page.evaluate(
        "(at) => [...document.querySelectorAll(at)].map((option) => [option.dataset.file.split('/').pop()[0],"
        " option.querySelector('.base')?.textContent ?? null])",
        OPTION,
    )


def chip(editor, name):
    """The button of one base model."""
    return editor.page.locator(CHIP).filter(has_text=name)


def test_each_file_has_a_tag(editor, opened):
    """What the layers say, more closely where the file states it; none where nobody can say."""
    opened()
    editor.page.locator(f"{OPTION} .base").nth(3).wait_for()
    tags = [["a", "SDXL"], ["b", "Pony"], ["c", "SD 1.5"], ["d", "Flux.1"], ["e", None]]
    assert listed(editor) == tags
    first = editor.page.locator(OPTION).first
    assert first.get_attribute("aria-label") == f"{FOLDER}/a_sdxl, SDXL"


def test_filter(editor, opened):
    """By mouse and by keyboard; kept for the next time, and together with a search."""
    rows = opened()
    chip(editor, "Flux.1").click()
    assert listed(editor) == [["d", "Flux.1"]]
    editor.page.keyboard.press("Escape")
    rows.part("add").click()
    editor.page.keyboard.type(f"{FOLDER}/")
    assert listed(editor) == [["d", "Flux.1"]]
    editor.page.keyboard.press("Tab")
    assert chip(editor, "Flux.1").evaluate("(button) => button === document.activeElement")
    assert chip(editor, "Flux.1").get_attribute("aria-checked") == "true"
    while chip(editor, "Unknown").get_attribute("aria-checked") != "true":
        editor.page.keyboard.press("ArrowRight")
    assert listed(editor) == [["e", None]]
    editor.page.keyboard.press("Tab")
    editor.page.keyboard.press("Enter")
    rows.becomes(f"<lora:{FOLDER}/e_what.safetensors:1>")


def test_chips_count_all_files(editor, opened, server):
    """As many as the server lists, and no chip for a model that no file is for."""
    opened()
    counts = {}
    for text in editor.page.locator(CHIP).all_inner_texts():
        name, _, count = text.rpartition(" ")
        counts[name] = int(count)
    loras = server.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    assert counts.pop("All") == len(loras) == sum(counts.values())
    bases = server.post("/lora_alloy/bases", {"names": loras})[1]["bases"]
    known = Counter(model for base in bases.values() for model in (base or "Unknown").split(" or "))
    assert counts == known and {"Pony", "Flux.1"} <= counts.keys()


def test_an_option_that_is_pressed_stays(editor, folder):
    """The answer of the server comes between press and release; the click counts."""
    editor.page.evaluate(REFRESH)
    rows = add_list(editor)
    held = []
    editor.page.route("**/lora_alloy/bases", lambda route: held.append(route))
    rows.part("add").click()
    editor.page.keyboard.type(f"{FOLDER}/")
    editor.page.locator(OPTION).first.hover()
    editor.page.mouse.down()
    editor.page.unroute("**/lora_alloy/bases")
    held[0].continue_()
    editor.page.locator(f"{OPTION} .base").first.wait_for()
    editor.page.mouse.up()
    rows.becomes(f"<lora:{FOLDER}/a_sdxl.safetensors:1>")


@pytest.mark.parametrize(
    ("loader", "unfit"),
    [
        (["CheckpointLoaderSimple", "ckpt_name", "tiny_sd15.safetensors"], "abd"),
        (["UNETLoader", "unet_name", "tiny_sdxl.safetensors"], "cd"),
        (["UNETLoader", "unet_name", "tiny_flux.safetensors"], "abc"),
        (["UNETLoader", "unet_name", "gone.safetensors"], ""),
    ],
    ids=["sd1", "sdxl", "flux", "gone"],
)
def test_what_does_not_fit_is_grey(editor, opened, loader, unfit):
    """Through the nodes between; the reason is on it, and it can still be chosen."""
    asked = []
    editor.page.on("response", lambda answer: asked.append(answer) if "base_of_model" in answer.url else None)
    with editor.page.expect_response(lambda answer: "/lora_alloy/base_of_model" in answer.url) as answer:
        rows = opened("LoraAlloyLoader", lambda rows: editor.page.evaluate(CONNECT, [*loader, rows.node]))
    model = answer.value.json()["base"]
    grey = (
        "(at) => [...document.querySelectorAll(at)].map((o) => o.dataset.file.split('/').pop()[0]).join('')"
    )
    wanted = f"([at, unfit]) => ({grey})(at) === unfit"
    editor.page.wait_for_function(wanted, arg=[f"{OPTION}.unfit", unfit])
    if unfit:
        first = editor.page.locator(f"{OPTION}.unfit").first
        tag = first.locator(".base").inner_text()
        assert first.get_attribute("title").endswith(f"For {tag}; the connected model is {model}.")
        name = first.get_attribute("data-file")
        first.click()
        rows.becomes(f"<lora:{name}:1>")


def test_without_a_model_nothing_is_grey(editor, opened):
    """A node that is connected to nothing."""
    opened("LoraAlloyLoader")
    assert editor.page.locator(f"{OPTION}.unfit").count() == 0 and len(listed(editor)) == 5


def test_the_card(editor, opened):
    """By key and by button; closing it leads back to the search."""
    opened()
    card = editor.page.locator(".lora-alloy-card")
    for key in ("F1", "Control+i"):
        editor.page.keyboard.press("ArrowDown")
        editor.page.keyboard.press(key)
        card.locator(".body:not([aria-busy])").wait_for()
        editor.page.keyboard.press("Escape")
        card.wait_for(state="detached")
        assert editor.page.evaluate("() => document.activeElement.getAttribute('role')") == "combobox"
    option = editor.page.locator(OPTION).nth(3)
    option.hover()
    button = option.locator(".info")
    assert min(button.bounding_box().values()) >= 24
    button.click()
    assert (
        "Flux.1" in card.inner_text() if card.locator(".body:not([aria-busy])").wait_for() is None else False
    )


def test_refreshed_files_are_asked_again(editor, opened, folder):
    """A file that became another one has the tag of that."""
    path = folder / "c_sd1.safetensors"
    before = path.read_bytes()
    opened()
    editor.page.keyboard.press("Escape")
    try:
        write_lora(path, "wan_t2v", only="blocks.0.self_attn")
        editor.page.evaluate(REFRESH)
        opened()
        tag = editor.page.locator(f"{OPTION}[data-file='{FOLDER}/c_sd1.safetensors'] .base")
        tag.filter(has_text="Wan").wait_for()
    finally:
        path.write_bytes(before)
        editor.page.evaluate(REFRESH)


def status_of(server, path):
    """The status of an answer, and what it says."""
    try:
        return 200, server.get(path)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_the_server_names_models(server):
    """By the header of the file; whatever is asked, only files in these folders are read."""
    path = "/lora_alloy/base_of_model"
    assert server.get(f"{path}?kind=checkpoints&name=tiny_sd15.safetensors") == {
        "base": "SD 1.5",
        "fits": ["SD 1.5"],
    }
    fits = server.get(f"{path}?kind=diffusion_models&name=tiny_sdxl.safetensors")["fits"]
    assert {"SDXL", "Pony", "Illustrious"} <= set(fits)
    (server.base / "models" / "checkpoints" / "bad.safetensors").write_bytes(json.dumps([1]).encode())
    try:
        for name in ("gone.safetensors", "../loras/sd15_a.safetensors", "bad.safetensors", "%00", "a" * 5000):
            assert server.get(f"{path}?kind=checkpoints&name={name}") == {"base": None, "fits": []}, name
    finally:
        (server.base / "models" / "checkpoints" / "bad.safetensors").unlink()
    for query in ("", "?kind=loras&name=sd15_a.safetensors", "?kind=checkpoints"):
        status, answer = status_of(server, path + query)
        assert status == 400 and answer["error"], query


def test_the_names_travel_once(server, folder):
    """Each name is in the definitions of all our nodes together one time."""
    info = server.get("/object_info")
    ours = json.dumps(
        {name: node for name, node in info.items() if "any_folder-name" in node["python_module"]}
    )
    for name in ("a_sdxl", "b_pony", "e_what"):
        assert ours.count(f"{FOLDER}/{name}.safetensors") == 1
