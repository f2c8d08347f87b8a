"""English and Chinese texts: fresh, complete, and shown by the editor."""

import json
import re

import pytest

from merge_ops import METHODS
from tests.nodes.list_widget import EMPTY
from tests.nodes.locales import ENGLISH, PICKER, english, inputs_of, nested_tooltips
from tests.nodes.pack import ROOT

CHINESE = ENGLISH.parents[1] / "zh" / "nodeDefs.json"
SAME = {"CLIP", "LoRA", "JSON", "LORA_STACK"}  # written so in Chinese too
HAN = re.compile("[\u4e00-\u9fff]")
SCRIPTS = ROOT / "web" / "js"
DOCS = ROOT / "web" / "docs"
ERRORS = ("## Error messages", "## 报错信息")
PAGES = sorted(path.stem for path in DOCS.glob("LoraAlloy*.md"))
MODEL = "LiteGraph.createNode('LoraAlloyLoader').inputs[0].localized_name"
ADD = """(method) => {
    const node = LiteGraph.createNode('LoraAlloyLoader')
    node.pos = [100, 100]
    app.graph.add(node)
    const picker = node.widgets.find((widget) => widget.name === 'method')
    picker.value = method
    picker.callback?.(method)
    const widget = (name) => node.widgets.find((other) => other.name === name)
    return {
        input: node.inputs.find((input) => input.name === 'model').localized_name,
        label: widget('strength').label,
        nested: widget('method.density').label,
        tooltip: widget('method.density').tooltip,
        output: node.outputs[0].localized_name,
    }
}"""


def texts(tree, path=()):
    """``{path: text}`` of nested dictionaries."""
    if isinstance(tree, str):
        return {path: tree}
    return {p: t for name, inner in tree.items() for p, t in texts(inner, (*path, name)).items()}


def said(source):
    """The texts that a script gives to ``say``."""
    calls = re.findall(r"\bsay\(((?:[^()]|\([^()]*\))*)\)", source)
    return {text for call in calls for text in re.findall(r'"([^"]+)"', call.partition(", {")[0])}


@pytest.fixture(scope="module")
def table():
    """The Chinese texts of the scripts by the English ones."""
    sources = [path.read_text(encoding="utf-8") for path in (SCRIPTS / "zh").glob("*.js")]
    return dict(re.findall(r'^  "([^"]+)":\s+"([^"]+)",$', "\n".join(sources), re.MULTILINE))


def test_english_is_fresh(server):
    """Run ``python -m tests.nodes.locales`` with the address of a server that has this pack."""
    known = texts(json.loads(ENGLISH.read_text(encoding="utf-8")))
    fresh = texts(english(server.get("/object_info")))
    assert known.items() <= fresh.items()
    for path in (
        fresh.keys() - known.keys()
    ):  # a method that was added brings parameters, shown by their names
        assert path[1:] == ("inputs", path[2], "name") and path[2].startswith(f"{PICKER}_"), path


def test_chinese_is_complete():
    """A Chinese text for every English one, with no letter that the editor takes for its own syntax."""
    wanted, given = (texts(json.loads(path.read_text(encoding="utf-8"))) for path in (ENGLISH, CHINESE))
    assert given.keys() >= wanted.keys()
    for path in given.keys() - wanted.keys():  # in English it comes from the registry
        assert path[1:] == ("inputs", PICKER, "tooltip"), path
    for path, text in given.items():
        assert HAN.search(text) or text in SAME, (path, text)
    for text in [*wanted.values(), *given.values()]:
        assert not set(text) & set("{}|@"), text


def test_scripts_are_translated(server, table):
    """What the list says, and the tooltips of parameters that a method or a view brings along."""
    scripts = [path for path in SCRIPTS.rglob("*.js") if path.parent.name != "zh"]
    wanted = set().union(*(said(path.read_text(encoding="utf-8")) for path in scripts))
    assert len(wanted) > 25
    picker = json.loads(CHINESE.read_text(encoding="utf-8"))["LoraAlloyMethod"]["inputs"][PICKER]["tooltip"]
    translated = set(
        re.findall(r"^(\w+)：", picker, re.MULTILINE)
    )  # a method beside them is shown in English
    assert len(translated) > 5
    wanted |= nested_tooltips(server.get("/object_info"), translated)
    assert wanted <= table.keys()
    for text, chinese in table.items():
        assert HAN.search(chinese), text
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", chinese))


@pytest.mark.parametrize("node", PAGES)
def test_help_in_both_languages(server, node):
    """Served; the same headings, table rows, examples and messages in both, and small pictures that exist."""
    pages = [DOCS / f"{node}.md", DOCS / node / "zh.md"]
    both = [page.read_text(encoding="utf-8") for page in pages]
    for pattern in (r"^#+ ", r"^\|", r"^(?:- |  - )", r"!\[", r"(?s)```.*?```"):
        found = [re.findall(pattern, text, re.MULTILINE) for text in both]
        assert len(found[0]) == len(found[1]), pattern
        assert "`" not in pattern or found[0] == found[1]
    assert "```json" in both[0]
    sections = [
        text.partition(heading)[2].partition("##")[0] for text, heading in zip(both, ERRORS, strict=True)
    ]
    messages = [re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE) for text in sections]
    assert messages[0] == messages[1]
    for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", "\n".join(both)):
        assert (DOCS / name).stat().st_size < 60_000, name
    assert HAN.search(both[1])
    for page in pages:
        path = page.relative_to(DOCS).as_posix()
        assert server.text(f"/extensions/any_folder-name/docs/{path}") == page.read_text(encoding="utf-8")


@pytest.fixture
def chinese(editor):
    """The editor in Chinese, until the test is over."""
    with editor.reloading():  # the workflow is loaded again with the other names
        editor.setting("Comfy.Locale", "zh")
    editor.page.wait_for_function(f"() => /{HAN.pattern}/.test({MODEL})")
    editor.page.evaluate(EMPTY)
    yield editor
    with editor.reloading():
        editor.setting("Comfy.Locale", "en")


def test_the_editor_in_chinese(chinese, table):
    """Labels, tooltips of a method's parameters, and the list."""
    shown = chinese.page.evaluate(ADD, "ties")
    wanted = json.loads(CHINESE.read_text(encoding="utf-8"))["LoraAlloyLoader"]
    assert shown["input"] == wanted["inputs"]["model"]["name"]
    assert shown["label"] == wanted["inputs"]["strength"]["name"]
    assert shown["nested"] == wanted["inputs"]["method_density"]["name"]
    assert shown["output"] == wanted["outputs"]["0"]["name"]
    assert shown["tooltip"] in table.values()
    chinese.page.get_by_text(table["+ Add LoRA"]).click()
    chinese.page.get_by_placeholder(table["Search LoRAs"]).wait_for()
    chinese.page.keyboard.press("Escape")


def test_the_picker_comes_from_the_registry(server):
    """Where the texts have no tooltip, the editor shows the definition's: each method and its limits."""
    shown = inputs_of(server.get("/object_info")["LoraAlloyLoader"])[PICKER]["tooltip"]
    for name, method in METHODS.items():
        assert f"{name}: {method.summary}" in shown
        assert all(reason in shown for reason in method.breaks.values())
