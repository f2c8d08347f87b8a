"""What stands beside LoRA files, as each program writes it, and what people and accidents make of it."""

import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.nodes.pack import pack_module

sidecars = pack_module("merge_ops.notes.sidecars")
plain_text = pack_module("merge_ops.notes.plain_text")

LORA_MANAGER = {
    "file_name": "mia",
    "model_name": "Mia, a photographer",
    "base_model": "Illustrious",
    "preview_url": "/x/mia.webp",
    "notes": "Works best at 0.7.\nNo <lora:other:1> beside it.",
    "modelDescription": "<p>Trained on <b>40</b> photos.</p>",
    "civitai": {
        "trainedWords": ["mia", "red scarf,"],
        "baseModel": "SDXL 1.0",
        "creator": {"username": "ann"},
    },
    "usage_tips": '{"strength":0.7}',
    "tags": ["character"],
}
CIVITAI = {
    "id": 7,
    "name": "v2",
    "baseModel": "Pony",
    "trainedWords": ["mia", "score_9"],
    "description": "<p>Retrained.</p><ul><li>hands</li><li>eyes</li></ul>",
    "model": {"name": "Mia", "type": "LORA"},
}
A1111 = {
    "description": "A person.",
    "sd version": "SDXL",
    "activation text": "mia, (red, long scarf:1.2), <lora:mia:0.8>",
    "preferred weight": 0.8,
    "notes": "mine",
}
RGTHREE = {
    "name": "Mia",
    "baseModel": "Flux.1 D",
    "userNote": "soft light",
    "trainedWords": [{"word": "mia", "civitai": True}, {"word": "1girl", "count": 40, "metadata": True}],
}


def read(folder, **files):
    """The sidecars of a LoRA ``mia`` with these contents."""
    names = {"manager": "mia.metadata.json", "civitai": "mia.civitai.info", "a1111": "mia.json"}
    names["rgthree"] = "mia.safetensors.rgthree-info.json"
    for kind, content in files.items():
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / names[kind]).write_bytes(raw)
    return sidecars.read_sidecars(sidecars.sidecar_paths(folder / "mia.safetensors"))


def test_lora_manager(tmp_path):
    """Words, base, notes as typed, description without its HTML, strength."""
    found = read(tmp_path, manager=LORA_MANAGER)
    assert found.words == ["mia", "red scarf"] and found.words_from == "mia.metadata.json"
    assert found.bases == ["Illustrious", "SDXL 1.0"]
    assert found.notes == "Works best at 0.7.\nNo <lora:other:1> beside it."
    assert (found.title, found.author, found.strength) == ("Mia, a photographer", "ann", 0.7)
    assert found.description == "Trained on 40 photos."


def test_civitai(tmp_path):
    """A list in the description stays a list."""
    found = read(tmp_path, civitai=CIVITAI)
    assert (found.words, found.bases, found.title) == (["mia", "score_9"], ["Pony"], "Mia")
    assert found.description == "Retrained.\n\n• hands\n\n• eyes"


def test_a1111(tmp_path):
    """The activation text at its commas, but not inside of brackets, and without tags of LoRAs."""
    found = read(tmp_path, a1111=A1111)
    assert found.words == ["mia", "(red, long scarf:1.2)"]
    assert (found.bases, found.strength, found.notes) == (["SDXL"], 0.8, "mine")


def test_rgthree(tmp_path):
    """Its words of Civitai, not those of the training tags."""
    found = read(tmp_path, rgthree=RGTHREE)
    assert (found.words, found.notes, found.bases) == (["mia"], "soft light", ["Flux.1 D"])


def test_the_first_counts(tmp_path):
    """The order of trust; what one leaves out comes from the next."""
    found = read(tmp_path, a1111=A1111, civitai=CIVITAI, manager=LORA_MANAGER | {"notes": ""})
    assert found.words == ["mia", "red scarf"]
    assert found.notes == "mine"
    found = read(tmp_path, manager=LORA_MANAGER | {"civitai": {}})
    assert found.words == ["mia", "score_9"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe{\x00}",
        '{"notes": "é"}'.encode("latin-1"),
        b"[" * 200_000,
        b'{"notes": "' + b"x" * (5 << 20) + b'"}',
    ],
    ids=range(8),
)
def test_one_that_cannot_be_read_is_named(raw, tmp_path):
    """And the others count."""
    found = read(tmp_path, manager=raw, a1111=A1111)
    assert found.problems == ["mia.metadata.json"]
    assert found.words[0] == "mia"


def test_a_folder_in_place_of_a_file(tmp_path):
    """Is no sidecar."""
    (tmp_path / "mia.metadata.json").mkdir()
    assert read(tmp_path).problems == ["mia.metadata.json"]


def test_byte_order_mark(tmp_path):
    """As editors on Windows write it."""
    assert read(tmp_path, a1111=b"\xef\xbb\xbf" + json.dumps(A1111).encode()).notes == "mine"


KEYS = sorted({*LORA_MANAGER, *CIVITAI, *A1111, *RGTHREE, "word", "username", "strength"})
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=25,
)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=8))
def test_any_values(tmp_path, content):
    """Whatever the types are: texts that can be shown and sent, and no error."""
    found = read(tmp_path, manager=content, civitai=content, a1111=content, rgthree=content)
    assert not found.problems
    texts = [*found.words, *found.bases, found.title, found.author, found.notes, found.description]
    for text in filter(None, texts):
        text.encode()
        assert "\0" not in text and len(text) <= 6000
    assert all(word and "\n" not in word for word in found.words)
    assert found.strength is None or -100 <= found.strength <= 100


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.characters() | st.sampled_from("<>/&;\"'! -="), max_size=300))
def test_any_html(text):
    """Never an error, and never longer than it may be."""
    assert len(plain_text.text_of_html(text, 50)) <= 50


@pytest.mark.parametrize(
    "piece", ["<a ", "<a b='", '<a b="c" ', "<!--", "<script>", "</", "<![CDATA[", "&#", "<"]
)
def test_hostile_html(piece):
    """Takes no longer than any other of its length; Python's own parser takes minutes for some of these."""
    before = time.process_time()
    plain_text.text_of_html("<b>" + piece * 100_000, 50)
    assert time.process_time() - before < 20


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>Two<br>lines</p><script>alert(1)</script>", "Two\nlines"),
        ("a &lt;b&gt; &amp; c<br/>", "a <b> & c"),
        ("<style>p { color: red }</style>seen<!-- not <b> --> too <script>rest", "seen too"),
        ("<LI>one</LI><li class='x'>two", "• one\n\n• two"),
        ("plain < text > here", "plain < text > here"),
        ("\u202egnp.exe\x00\x1b[0m", "gnp.exe[0m"),
        ("👩‍🎨 and 触发词", "👩‍🎨 and 触发词"),
        ("<p>" * 20_000, ""),
    ],
    ids=range(8),
)
def test_html_as_text(html, text):
    """What a reader sees."""
    assert plain_text.text_of_html(html, 1000) == text
