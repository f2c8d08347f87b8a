"""The editor's search box: what people type finds the nodes of this pack, and the right one first."""

import pytest

LOADER = "Load & Merge LoRAs"
FIRST = [
    "lora", "power lora", "multi lora", "merge lora", "ties", "lora loader", "lora stack", "lora manager",
    "power lora loader", "Load LoRA", "block weight",
]  # fmt: skip
# what a node that helps is looked for by; none of them is in the way of the others
HELPERS = {
    "xy plot": ["Sweep Parameter", "Labelled Grid"],
    "grid": ["Labelled Grid"],
    "save lora": ["Save LoRA"],
    "slerp": ["Merge Method"],
    "lora info": ["Inspect LoRAs"],
    "distill lora": ["Distill LoRAs", "Record LoRAs"],
    "lora from checkpoint": ["Extract LoRA"],
    "apply lora": ["Apply Merged LoRA"],
    "merge loaded loras": ["Merge Loaded LoRAs"],
    "mergekit": ["LoRA Recipe"],
}
BOX = "Comfy.NodeSearchBoxImpl"
SHOWN = """() => [...document.querySelectorAll('[role=option], [data-testid=result-item]')]
    .map((item) => item.innerText.split('\\n')[0].replaceAll('\\u00a0', ' ').trim()).filter(Boolean)"""


@pytest.fixture(scope="module", params=["default", "v1 (legacy)"])
def box(request, editor_page):
    """The page with one kind of search box."""
    before = editor_page.page.evaluate("(n) => app.extensionManager.setting.get(n)", BOX)
    editor_page.setting(BOX, request.param)
    yield editor_page.page
    editor_page.page.keyboard.press("Escape")
    editor_page.setting(BOX, before)


def search(page, query, wanted):
    """The names in the order of the list, once one that is wanted is in it."""
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.activeElement?.tagName !== 'INPUT'")  # the last box is gone
    page.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.wait_for_function("() => document.activeElement?.tagName === 'INPUT'")
    page.keyboard.type(query, delay=30)
    # the list follows what is typed with a delay: the one for the whole of it is there when it stays the same
    page.wait_for_function(
        f"(names) => ({SHOWN})().slice(0, 2).some((name) => names.includes(name))", arg=wanted
    )
    return page.evaluate(SHOWN)


@pytest.mark.parametrize("query", FIRST)
def test_the_one_node_comes_first(box, query):
    """First or second, with core's own loaders and everything else of core in the same list."""
    assert LOADER in search(box, query, [LOADER])[:2]


@pytest.mark.parametrize("query", HELPERS)
def test_a_node_that_helps(box, query):
    """Found by words of its own."""
    assert set(HELPERS[query]) & set(search(box, query, HELPERS[query])[:2])


def test_no_word_belongs_to_two_kinds(server):
    """What leads to the one node leads to no other; others share a word only where either is meant."""
    info = {name: node for name, node in server.get("/object_info").items() if name.startswith("LoraAlloy")}
    words = {name: set(node.get("search_aliases") or ()) for name, node in info.items()}
    loader = words.pop("LoraAlloyLoader")
    assert loader >= {query.lower() for query in FIRST}
    assert not [name for name, those in words.items() if those & loader]
