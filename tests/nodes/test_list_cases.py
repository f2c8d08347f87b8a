"""One table of lists, names and pasted texts, read by Python and by the scripts of the widget in Chromium."""

import json
import re

import pytest

from tests.nodes.pack import ROOT, pack_module

CASES = json.loads((ROOT / "tests" / "nodes" / "list_cases.json").read_text(encoding="utf-8"))
STEPS = json.loads((ROOT / "tests" / "nodes" / "steps_cases.json").read_text(encoding="utf-8"))
BLOCKS = json.loads((ROOT / "tests" / "nodes" / "block_cases.json").read_text(encoding="utf-8"))
CHECK = "async (text) => (await import('/js/list/blocks.js')).checkBlocks(text)"
CHECK_STEPS = "async (text) => (await import('/js/list/steps.js')).checkSteps(text)"
WORDS = "async () => (await import('/js/list/blocks.js')).WORDS"
blocks = pack_module("merge_ops.blocks")
steps = pack_module("nodes.values.steps")
lora_text = pack_module("nodes.values.lora_text")
lora_names = pack_module("nodes.values.lora_names")
ParameterError = pack_module("merge_ops").ParameterError
READ = """async (text) => {
    const { parseList, formatList, isRow } = await import('/js/list/text.js')
    const entries = parseList(text)
    const rows = entries.filter(isRow).map(({ name, strength, clip, on, blocks, prompt, steps, model }) =>
        [name, strength, clip, on, blocks, prompt, ...(model ? [steps, model] : steps ? [steps] : [])])
    return { rows, written: formatList(entries), bad: entries.filter((e) => e.unreadable).length }
}"""
NAMES = "async ([n, f]) => (await import('/js/list/text.js')).filesCalled(n, f)"
MATCHES = "async ([n, f]) => (await import('/js/list/text.js')).filesMatching(n, f)"
PASTE = """async ([text, files]) => {
    const { pastedEntries, formatList } = await import('/js/list/text.js')
    return formatList(pastedEntries(text, files))
}"""
SEARCH = """async ([query, files]) => {
    const { catalogOf } = await import('/js/files/catalog.js')
    const { Search } = await import('/js/files/search.js')
    const { holding, similar } = new Search(catalogOf(files)).find(query)
    return [...holding, ...similar].map(({ file }) => file)
}"""


@pytest.mark.parametrize("case", CASES["lists"], ids=lambda case: case["text"][:30])
def test_python_reads_and_writes(case):
    """Rows, and the text that is written back, less the remarks."""
    rows = lora_text.parse_rows(case["text"])
    found = [
        [r.lora_name, r.strength, r.strength_clip, r.enabled, r.blocks, r.prompt]
        + ([r.steps, r.on] if r.on else [r.steps] if r.steps else [])
        for r in rows
    ]
    assert found == case["rows"]
    lines = [line for line in case["written"].splitlines() if "<lora:" in line]
    assert lora_text.format_rows(rows).splitlines() == lines


@pytest.mark.parametrize("case", CASES["lists"], ids=lambda case: case["text"][:30])
def test_the_widget_reads_and_writes(scripts, case):
    """The same rows, and the text with its remarks; what is written is written again as it is."""
    assert scripts.evaluate(READ, case["text"]) == {
        "rows": case["rows"],
        "written": case["written"],
        "bad": 0,
    }
    assert scripts.evaluate(READ, case["written"])["written"] == case["written"]


@pytest.mark.parametrize(("text", "says"), CASES["refused"])
def test_both_refuse(scripts, text, says):
    """Python with one sentence that names the line, the widget with a line marked as unreadable."""
    with pytest.raises(ParameterError, match=says):
        lora_text.parse_rows(text)
    assert scripts.evaluate(READ, text)["bad"] == 1


@pytest.mark.parametrize(("name", "files"), CASES["names"])
def test_both_find_the_same_files(scripts, name, files):
    """With or without folder and ending, only where it is clear."""
    assert lora_names.find_files(name, CASES["files"]) == files
    assert scripts.evaluate(NAMES, [name, CASES["files"]]) == files


@pytest.mark.parametrize(("name", "files"), CASES["patterns"])
def test_both_match_the_same_epochs(scripts, name, files):
    """Inside one folder; Python from the oldest to the newest."""
    assert lora_names.match_files(name, CASES["epochs"]) == files
    assert sorted(scripts.evaluate(MATCHES, [name, CASES["epochs"]])) == sorted(files)


def test_files_of_several_folders(scripts):
    """A pattern without a folder is refused where it is not clear which folder it means."""
    with pytest.raises(ParameterError, match="several folders: a, b"):
        lora_names.match_files("twin-*", CASES["epochs"])
    assert scripts.evaluate(MATCHES, ["twin-*", CASES["epochs"]]) == []


@pytest.mark.parametrize(("name", "files"), CASES["more_names"])
def test_both_find_names_that_are_typed_otherwise(scripts, name, files):
    """With spaces, endings, slashes and Unicode forms of their own; a name that is exactly a file's wins."""
    assert lora_names.find_files(name, CASES["more_files"]) == files
    assert scripts.evaluate(NAMES, [name, CASES["more_files"]]) == files


@pytest.mark.parametrize(("text", "written"), CASES["pasted"])
def test_pasted_text(scripts, text, written):
    """Tags are taken out of a prompt, and names become those of the files."""
    assert scripts.evaluate(PASTE, [text, CASES["files"]]) == written


@pytest.mark.parametrize(("query", "best"), CASES["searches"])
def test_search(scripts, query, best):
    """The best file comes first; nothing comes where nothing fits."""
    found = scripts.evaluate(SEARCH, [query, CASES["files"]])
    assert found[: len(best)] == best and bool(found) == bool(best)


@pytest.mark.parametrize("text", BLOCKS["right"])
def test_right_block_strengths(scripts, text):
    """Python reads them, and the widget finds nothing wrong."""
    assert blocks.BlockStrengths.parse(text)
    assert scripts.evaluate(CHECK, text) is None


@pytest.mark.parametrize("text", BLOCKS["wrong"])
def test_wrong_block_strengths(scripts, text):
    """Python refuses them, and the widget says one sentence."""
    with pytest.raises(ParameterError):
        blocks.BlockStrengths.parse(text)
    assert scripts.evaluate(CHECK, text).endswith(".")


@pytest.mark.parametrize(("text", "spans"), STEPS["right"])
def test_right_steps(scripts, text, spans):
    """Python reads the spans, and the widget finds nothing wrong."""
    assert [list(span) for span in steps.Steps.parse(text).spans] == spans
    assert scripts.evaluate(CHECK_STEPS, text) is None


@pytest.mark.parametrize(("text", "says"), STEPS["wrong"])
def test_wrong_steps(scripts, text, says):
    """Python refuses them with one sentence, and the widget says one."""
    with pytest.raises(ParameterError, match=re.escape(says)):
        steps.Steps.parse(text)
    assert scripts.evaluate(CHECK_STEPS, text).endswith(".")


def test_the_widget_knows_the_words_of_blocks(scripts):
    """All words, presets and vectors that Python knows, and no others."""
    selectors, presets = pack_module("merge_ops.blocks.selectors"), pack_module("merge_ops.blocks.presets")
    known = scripts.evaluate(WORDS)
    assert set(known["where"]) == {word for word in selectors.WHERE if word.islower()}
    assert set(known["what"]) == set(selectors.WHAT)
    assert set(known["stream"]) == set(selectors.STREAM)
    assert known["aliases"] == selectors.ALIASES
    assert set(known["numbered"]) == {word.lower() for word in selectors._NUMBERED}
    assert set(known["presets"]) == set(presets.PRESETS)
    assert set(known["vectors"]) == set(presets.VECTORS)
