"""Windows of the sampling, by hand. Needs no ComfyUI; what texts mean is in steps_cases.json."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nodes.pack import pack_module

steps = pack_module("nodes.values.steps")
ParameterError = pack_module("merge_ops").ParameterError


def windows(*texts):
    """The windows of rows with these steps, as plain tuples."""
    return [tuple(window) for window in steps.cut_into_windows([steps.Steps.parse(text) for text in texts])]


def test_windows_begin_and_end_where_a_strength_changes():
    """Of whichever LoRA; one without steps keeps its strength."""
    assert windows("", "0-0.25", "0.25-0.5:0.4") == [
        (0.0, 0.25, (1.0, 1.0, 0.0)),
        (0.25, 0.5, (1.0, 0.0, 0.4)),
        (0.5, 1.0, (1.0, 0.0, 0.0)),
    ]
    assert windows("", "") == [(0.0, 1.0, (1.0, 1.0))]


def test_windows_are_as_long_as_they_can_be():
    """Spans that meet with one factor are one window, and so is what only looks like a change."""
    assert windows("0-0.2 0.2-0.6", "0-1:0") == [(0.0, 0.6, (1.0, 0.0)), (0.6, 1.0, (0.0, 0.0))]
    assert windows("0:1 0.3:1 1:1") == [(0.0, 1.0, (1.0,))]


spans = st.lists(st.integers(0, 8), min_size=2, max_size=8, unique=True).map(sorted)


@given(st.lists(spans, min_size=1, max_size=4))
def test_windows_cover_the_sampling(rows):
    """Without gaps, in order, no two alike side by side, with the factor that each row has there."""
    texts = [
        " ".join(
            f"{a / 8}-{b / 8}:{i + 1}" for i, (a, b) in enumerate(zip(row[::2], row[1::2], strict=False))
        )
        for row in rows
    ]
    found = windows(*texts)
    assert found[0][0] == 0 and found[-1][1] == 1
    for (_, end, factors), (start, _, others) in pairwise(found):
        assert end == start and factors != others
    for eighth in range(8):
        (here,) = [factors for start, end, factors in found if start <= (eighth + 0.5) / 8 < end]
        for row, factor in zip(rows, here, strict=True):
            pairs = list(zip(row[::2], row[1::2], strict=False))
            inside = [i + 1 for i, (a, b) in enumerate(pairs) if a <= eighth < b]
            assert factor == (inside[0] if inside else 0)


def test_too_many_windows_are_refused():
    """Each may need a merge of its own."""
    alternating = " ".join(f"{i / 16}-{(i + 0.5) / 16}" for i in range(16))
    assert len(windows(alternating)) == steps.MAX_WINDOWS
    with pytest.raises(ParameterError, match="into 34 windows; at most 32"):
        windows(f"{alternating} 0.97-0.98")
