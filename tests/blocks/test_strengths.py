"""The text of block strengths: read, written, refused, and what it means for a layer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_ops import BlockStrengths, ParameterError
from merge_ops.blocks import PRESETS, block_strengths
from merge_ops.blocks.presets import VECTORS
from merge_ops.blocks.selectors import ALIASES, WORDS

NUMBERED = ("down", "up", "blocks", "double", "single", "refiner", "te", "te1", "te2", "te3", "in", "out")
numbers = st.floats(-100, 100) | st.sampled_from((0, 1, 0.5, 1e-5, 1e-7))
words = st.sampled_from([word for word in (*WORDS, *ALIASES) if word.islower()])
ranges = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda pair: f"{min(pair)}-{max(pair)}")
pieces = words | st.builds("{}.{}".format, st.sampled_from(NUMBERED), ranges | st.integers(0, 99))
selectors = st.lists(pieces, min_size=1, max_size=2).map(".".join)
terms = st.builds("{}:{}".format, selectors, numbers)
texts = (
    st.builds(lambda first, rest: " ".join((*first, *rest)), st.lists(numbers.map(str), max_size=1),
              st.lists(terms, min_size=1, max_size=6))
    | st.sampled_from(sorted(PRESETS))
    | st.sampled_from(sorted(VECTORS)).flatmap(lambda n: st.lists(numbers, min_size=n, max_size=n)).map(
        lambda values: ",".join(map(str, values)))
)  # fmt: skip
LAYERS = (
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.mid_block.resnets.0.conv1",
    "unet.up_blocks.0.attentions.2.transformer_blocks.0.ff.net.2",
    "transformer.transformer_blocks.3.attn.to_out.0",
    "unet.single_blocks_7_linear1",
    "text_encoder.text_model.encoder.layers.3.self_attn.q_proj",
)


def parse(text):
    """What was read, or None if it is refused in one sentence."""
    try:
        return BlockStrengths.parse(text)
    except ParameterError as error:
        assert 0 < len(str(error)) < 300 and "\n" not in str(error)
        return None


@given(texts)
def test_there_and_back(text):
    """``parse(str(x)) == x``, and each layer gets the same; only a repeated selector is refused."""
    found = parse(text)
    if found is not None:
        again = BlockStrengths.parse(str(found))
        assert again == found and str(again) == str(found)
        assert [again.factor(name) for name in LAYERS] == [found.factor(name) for name in LAYERS]
    else:
        with pytest.raises(ParameterError, match="twice"):
            BlockStrengths.parse(text)


@given(st.text(max_size=60) | st.text("downattn.0123456789-:, ", max_size=40))
def test_any_text_is_read_or_refused(text):
    """With a sentence; and what was read can be written."""
    found = parse(text)
    assert found is None or BlockStrengths.parse(str(found)) == found


DOWN, MID, UP, DOUBLE, SINGLE, TEXT = LAYERS


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("down:0.5 mid:2 attn:0.8", [0.4, 2, 1, 0.8, 1, 1]),
        ("0.1, down:0.5, mid : 2", [0.5, 2, 0.1, 0.1, 0.1, 0.1]),
        ("rest:0 up:1", [0, 0, 1, 0, 0, 0]),
        ("unet:0.5 down:1", [1, 0.5, 0.5, 0.5, 0.5, 1]),
        ("te:0 attn:0.5 te.attn:3", [0.5, 1, 1, 0.5, 1, 3]),
        ("te1:0.25 te:0.5 te2:9", [1, 1, 1, 1, 1, 0.25]),
        ("te.0-3:0.25 te.4-11:0", [1, 1, 1, 1, 1, 0.25]),
        ("double.0-9:0.5 double.3:2 single:0", [1, 1, 1, 2, 0, 1]),
        ("blocks:0.5 single:1", [1, 1, 1, 0.5, 1, 1]),
        ("in4:0.5 out2:0.25 m00:0", [0.5, 0, 0.25, 1, 1, 1]),
        ("IN04-08:0.5 OUT.02:0.25", [0.5, 1, 0.25, 1, 1, 1]),
        ("down.1:0.5 in4:0.25 down:9", [0.25, 1, 1, 1, 1, 1]),
        ("attn:0.5 attn1:0.25 q:0.125 out:3", [0.125, 1, 1, 3, 1, 1]),
        ("down.attn:0 down:0.5 attn:0.8", [0, 1, 1, 0.8, 1, 1]),
        ("conv:0.5 resnet:0.25 ff:2 mlp.up:3", [1, 0.5, 3, 1, 1, 1]),
        ("q:0 out:0", [0, 1, 1, 0, 1, 1]),
        ("down:-1", [-1, 1, 1, 1, 1, 1]),
        ("down.0-1:2 down.1-2:3", [3, 1, 1, 1, 1, 1]),
        ("0.3", [0.3] * 6),
        ("style", [0, 0, 0, 0, 0, 0]),
        ("OUT02", [0, 0, 1, 0, 0, 0]),
    ],
)
def test_what_a_text_means(text, wanted):
    """Where times what; the most specific of a kind; the rest."""
    strengths = BlockStrengths.parse(text)
    assert [strengths.factor(name) for name in LAYERS] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dwon:1", "did you mean 'down'"),
        ("fox:1", "known: unet"),
        ("down", "write selector:number"),
        ("down:", "write selector:number"),
        ("OUTAL", "did you mean 'OUTALL'"),
        ("in:1", "needs the number"),
        ("mid.3:1", "no numbered blocks"),
        ("double.9-3:1", "counts backwards"),
        ("down:1 down:2", "twice"),
        ("attn.down:1 down.attn:2", "twice"),
        ("attn.attn:1", "a word twice"),
        ("down:x", "has no number"),
        ("down:nan", "has no number"),
        ("down:101", r"outside \[-100, 100\]"),
        ("inf", r"outside \[-100, 100\]"),
        ("1,0,0.5", "12, 17, 20 or 26 values, not 3"),
        (",".join("R" * 17), "random values cannot be repeated"),
        ("IN02:stop=10", "has no number"),
        (" , ", "are empty"),
    ],
)
def test_refusing(text, says):
    """One sentence that says the way out."""
    assert parse(text) is None
    with pytest.raises(ParameterError, match=says):
        BlockStrengths.parse(text)


def test_selectors_without_a_layer():
    """Each that selects nothing; a vector only if it selects nothing but text encoders."""
    assert BlockStrengths.parse("down:1 te2:0 ff:0.5 up.9.attn:1").without_layers(LAYERS) == [
        "te2",
        "up.9.attn",
    ]
    assert BlockStrengths.parse("OUTALL").without_layers(LAYERS) == []
    assert BlockStrengths.parse("OUTALL").without_layers((DOUBLE, TEXT)) == ["OUTALL"]


def test_none_and_empty_text_are_no_strengths():
    """What widgets and lists of LoRAs hold where there is nothing."""
    assert block_strengths(None) is None and block_strengths("  ") is None
    strengths = BlockStrengths.parse("down:0.5")
    assert block_strengths(strengths) is strengths and block_strengths("down:.50") == strengths
    with pytest.raises(ParameterError, match="are text"):
        block_strengths(0.5)
