"""Reading a header costs less than three times its size, and more only for text that Python stores wide."""

import json
import struct
import tracemalloc

import pytest

from merge_ops import LoraFormatError
from merge_ops.formats.header import parse_header

MB = 1 << 20
TENSOR = {"x": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}
TEXTS = {
    "plain": ("x" * 4 * MB, 3),
    "escaped": ("line\n" * MB, 3),
    "many": ({f"key {i}": "value" * 40 for i in range(20_000)}, 3),
    "Latin": ("é" * 2 * MB, 3),
    "Chinese": ("世" * 2 * MB, 4),
    "one emoji": ("x" * 4 * MB + "\U0001f600", 6.5),
    "escaped, and one emoji": ("line\n" * MB + "\U0001f600", 10),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
def test_memory(kind):
    text, times = TEXTS[kind]
    metadata = text if isinstance(text, dict) else {"text": text}
    raw = json.dumps({"__metadata__": metadata, **TENSOR}, ensure_ascii=False).encode()
    tracemalloc.start()
    try:
        _, found = parse_header(raw)
        peak = tracemalloc.get_traced_memory()[1] + len(raw)
    finally:
        tracemalloc.stop()
    assert found == metadata
    assert peak < times * len(raw) + MB / 2


@pytest.mark.parametrize(
    "text",
    ["", '"', "\\", '\\"', "\\\\", '\\\\"', "a\\", "é\n\t\u0001", "\U0001f600", "\u200b", "\\u0041", "/"],
)
def test_texts_come_back_as_json_reads_them(text):
    for ascii_only in (True, False):
        raw = json.dumps({"__metadata__": {text: text, "z": ""}, **TENSOR}, ensure_ascii=ascii_only).encode()
        assert parse_header(raw)[1] == {text: text, "z": ""}


@pytest.mark.parametrize(
    "value",
    [
        b'"a',
        b'"a\\"',
        b'"a\\',
        b'"\n"',
        b'"\\x"',
        b'"\\ud800"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b"1",
        b"",
        b'"\\u12"',
    ],
)
def test_what_is_no_text_is_refused(value):
    raw = b'{"__metadata__":{"a":' + value + b"}}"
    with pytest.raises(LoraFormatError):
        parse_header(raw)


def test_an_escaped_quote_at_the_end_of_the_file(tmp_path):
    raw = b'{"a\\'
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    from merge_ops import load

    with pytest.raises(LoraFormatError, match=r"^x\.safetensors: "):
        load(path)
