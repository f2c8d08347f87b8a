"""What the nodes recommend is what the full run of the quality benchmark measured."""

import json

import pytest

from merge_ops import METHODS
from tests.nodes.pack import ROOT, pack_module

ROWS = json.loads((ROOT / "benchmarks/quality/figures.json").read_text(encoding="utf-8"))["drawings"]["rows"]
ADVISED = pack_module("nodes.values.recommended")
SMALL = 0.03  # of a LoRA's own skill


def kept(row, group):
    return ROWS[row]["groups"][group]["own"]["mean"]


def over_linear(method, group):
    """How much more of the LoRAs' own skills is kept than by linear."""
    return kept(method, group) - kept("linear", group)


def methods_for(purpose):
    return [name for name, text in ADVISED.RECOMMENDED.items() if text == purpose]


def test_a_quick_look():
    """No method that learns nothing keeps much more of two to four LoRAs."""
    assert methods_for(ADVISED.QUICK) == ["linear"]
    plain = [name for name, method in METHODS.items() if not method.needs_recording]
    best = max(over_linear(name, count) for name in plain for count in "234")
    assert best < SMALL


@pytest.mark.parametrize("method", methods_for(ADVISED.ONE_SUBJECT))
def test_loras_of_one_subject(method):
    """Much more of twins is kept than by linear."""
    assert over_linear(method, "twins") > 5 * SMALL


def test_even_costs_nothing_elsewhere():
    """Who is wrong about the subject loses little with it."""
    assert min(over_linear("even", count) for count in "23468") > -SMALL


@pytest.mark.parametrize("count", "3468")
def test_a_merge_to_keep(count):
    """Distilled LoRAs keep more than any method, and with six or eight twice as much as linear."""
    best = max(kept(name, count) for name in METHODS)
    distilled = kept("distilled", count)
    assert distilled > best + 5 * SMALL
    assert count in "34" or distilled > 2 * kept("linear", count)


def test_the_tooltip_names_what_the_list_marks():
    """The same methods, and no other; learning comes in both."""
    for name in METHODS:
        assert (f" {name} " in f" {ADVISED.ADVICE} ".replace(".", " ")) == (name in ADVISED.RECOMMENDED)
    assert "distill" in ADVISED.ADVICE
