"""The list of LoRAs as text, and the keywords of a merge. Needs no ComfyUI; cases are in list_cases.json."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nodes.pack import pack_module

lora_text = pack_module("nodes.values.lora_text")
keywords = pack_module("nodes.values.keywords")
merge_ops = pack_module("merge_ops")
Row = lora_text.LoraRow


names = st.text(
    st.characters(exclude_characters="<>:\n\r", exclude_categories=["C", "Z"]), min_size=1, max_size=30
)
strengths = st.integers(-1000, 1000).map(lambda n: n / 10)


blocks = st.sampled_from(["", "down:0.5 mid:1", "1,0,0.5,1"])

steps = st.sampled_from(["", "0-0.25", "0:1 0.5:0.2 1:0"])

# the signs that mean something in a list are drawn often
prompts = st.text(
    st.sampled_from("\\<>:|,# =a") | st.characters(exclude_categories=["C", "Z"]), max_size=20
).map(str.strip)


@given(
    st.lists(
        st.builds(Row, names, strengths, st.none() | strengths, st.booleans(), blocks, prompts, steps),
        max_size=6,
    )
)
def test_writing_and_reading_back(rows):
    """``parse(format(rows)) == rows``."""
    assert lora_text.parse_rows(lora_text.format_rows(rows)) == rows


def test_clip_strength_is_the_strength_unless_given():
    """As in Load LoRA with one strength."""
    assert [row.clip for row in lora_text.parse_rows("<lora:a:0.5>\n<lora:b:0.5:0.1>")] == [0.5, 0.1]


def test_spaces_at_the_ends_of_a_name_are_kept_to_find_its_file():
    """The row has the plain name, and the one that was typed for looking its file up."""
    names = [(row.lora_name, row.wanted) for row in lora_text.parse_rows("<lora:Luma :1>,<lora:a:1>")]
    assert names == [("Luma", "Luma "), ("a", "a")]


def test_keywords_of_each_method():
    """What widgets give becomes keywords of ``merge``; what API callers leave out comes from the registry."""
    assert keywords.build_merge_keywords(None)["method"] == "linear"
    for name, method in merge_ops.METHODS.items():
        given_values = {"method": name, **{p.name: None for p in method.params}}
        expected = {"method": name, "space": "delta", "rank": None, "seed": 0}
        assert keywords.build_merge_keywords(given_values) == expected
    peft = {"method": "peft", "combination_type": "ties_svd", "density": 0.3, "svd_rank": 0, "svd_clamp": 0.0}
    assert keywords.build_merge_keywords(peft, seed=3) == {
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
        keywords.build_merge_keywords(method)


def test_unknown_inputs_are_refused():
    """ComfyUI would drop them without a word."""
    with pytest.raises(merge_ops.ParameterError, match="did you mean 'density'"):
        keywords.refuse_unknown({"method.densty": 0.5}, ())
