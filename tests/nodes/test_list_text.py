"""The list of LoRAs as text, and the keywords of a merge. Needs no ComfyUI."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nodes.pack import pack_module

lora_text = pack_module("nodes.lora_text")
keywords = pack_module("nodes.keywords")
merge_ops = pack_module("merge_ops")
Row = lora_text.LoraRow


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", []),
        ("\n  \n", []),
        ("<lora:a.safetensors:0.8>", [Row("a.safetensors", 0.8)]),
        ("<lora:style/ink.safetensors:0.7:0.5>", [Row("style/ink.safetensors", 0.7, 0.5)]),
        ("# <lora:a:1>", [Row("a", 1.0, None, enabled=False)]),
        ("# only a remark", []),
        ("<lora:a>", [Row("a", 1.0)]),
        ("<lora:a:-1.5>", [Row("a", -1.5)]),
        ("<lora:a:1> <lora:b:2>,<lora:c:3>", [Row("a", 1.0), Row("b", 2.0), Row("c", 3.0)]),
        ("<lora:odd:name:0.5>", [Row("odd:name", 0.5)]),
        ("<lora:a:1:2:3>", [Row("a:1", 2.0, 3.0)]),
        ("<lora:a:1:blocks=down:0.5 mid:1>", [Row("a", 1.0, blocks="down:0.5 mid:1")]),
        ("<lora:a:1:0.5:lbw=1,0,0.5>", [Row("a", 1.0, 0.5, blocks="1,0,0.5")]),
    ],
)
def test_reading(text, rows):
    """Each spelling of a row."""
    assert lora_text.parse_rows(text) == rows


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<lora:a:1>\nfox", "line 2"),
        ("<lora::1>", "no file name"),
        ("<lora:a:101>", "outside"),
        ("<lora:a:nan>", "outside"),
        ("<lora:a:inf>", "outside"),
    ],
)
def test_refusing(text, says):
    """One sentence with the line's number."""
    with pytest.raises(merge_ops.ParameterError, match=says):
        lora_text.parse_rows(text)


names = st.text(
    st.characters(exclude_characters="<>:\n\r", exclude_categories=["C", "Z"]), min_size=1, max_size=30
)
strengths = st.integers(-1000, 1000).map(lambda n: n / 10)


blocks = st.sampled_from(["", "down:0.5 mid:1", "1,0,0.5,1"])


@given(st.lists(st.builds(Row, names, strengths, st.none() | strengths, st.booleans(), blocks), max_size=6))
def test_writing_and_reading_back(rows):
    """``parse(format(rows)) == rows``."""
    assert lora_text.parse_rows(lora_text.format_rows(rows)) == rows


def test_clip_strength_is_the_strength_unless_given():
    """As in Load LoRA with one strength."""
    assert [row.clip for row in lora_text.parse_rows("<lora:a:0.5>\n<lora:b:0.5:0.1>")] == [0.5, 0.1]


def test_keywords_of_each_method():
    """What widgets give becomes keywords of ``merge``; what API callers leave out comes from the registry."""
    assert keywords.merge_keywords(None)["method"] == "linear"
    for name, method in merge_ops.METHODS.items():
        given_values = {"method": name, **{p.name: None for p in method.params}}
        expected = {"method": name, "space": "delta", "rank": None, "seed": 0}
        assert keywords.merge_keywords(given_values) == expected
    peft = {"method": "peft", "combination_type": "ties_svd", "density": 0.3, "svd_rank": 0, "svd_clamp": 0.0}
    assert keywords.merge_keywords(peft, seed=3) == {
        "combination_type": "ties_svd",
        "density": 0.3,
        "seed": 3,
    }


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("tise", "did you mean 'ties'"),
        ({"method": "ties", "density": 2.0}, "outside"),
        ({"method": "ties", "density": math.nan}, "finite"),
        ({"method": "linear", "density": 0.5}, "no parameters"),
    ],
)
def test_keywords_refused(method, says):
    """A misspelled method or a wrong value is an error with a hint."""
    with pytest.raises(merge_ops.MergeError, match=says):
        keywords.merge_keywords(method)


def test_unknown_inputs_are_refused():
    """ComfyUI would drop them without a word."""
    with pytest.raises(merge_ops.ParameterError, match="did you mean 'density'"):
        keywords.refuse_unknown({"method.densty": 0.5}, ())
