"""Texts of workflows, recipes and files that would keep a backtracking or doubling reader busy for hours."""

import time

import pytest
import torch

import merge_ops
from merge_ops import MergeError, ParameterError
from merge_ops.blocks import block_strengths, order
from merge_ops.formats import from_tensors
from merge_ops.recipes.imports import parsed_text
from tests.nodes.pack import pack_module

lora_text = pack_module("nodes.values.lora_text")
steps = pack_module("nodes.values.steps")
sweep_values = pack_module("nodes.values.sweep_values")
PackError = pack_module("merge_ops.errors").MergeError

LONG = 100_000
LISTS = {
    "tags in tags": "\\<lora:" * (LONG // 7),
    "tags that do not end": "<lora:" * (LONG // 6),
    "digits": f"<lora:a:{'1' * LONG}x>",
    "spaces before a number": f"<lora:a:{' ' * LONG}x>",
    "backslashes in a prompt": f"<lora:a:1:prompt={chr(92) * LONG}x>",
    "backslashes and signs": f"<lora:a:1:prompt={(chr(92) * 2 + 'x') * (LONG // 3)}>",
    "colons": f"<lora:{':1' * (LONG // 2)}>",
    "blocks": f"<lora:a:1{':blocks=' * (LONG // 8)}>",
    "commas": f"a{' ,' * (LONG // 2)}a",
    "steps": f"<lora:a:1{':steps=' * (LONG // 7)}>",
}


def in_time(limit, call, *args):
    """Call what may be refused, within a processor time of this process."""
    start = time.process_time()
    try:
        result = call(*args)
    except (MergeError, PackError):
        result = None
    assert time.process_time() - start < limit
    return result


@pytest.mark.parametrize("what", sorted(LISTS))
def test_long_lists_are_read_in_linear_time(what):
    """And written; Python took minutes to hours for most of them."""
    rows = in_time(2, lora_text.parse_rows, LISTS[what])
    if rows:
        assert in_time(2, lora_text.format_rows, rows)


def test_prompts_keep_their_backslashes():
    for prompt in ("a\\", "a\\\\", "\\<b\\\\>", "\\(a\\)", "<", "\\\\\\<", "\\ \\"):
        row = lora_text.LoraRow("x", prompt=prompt)
        assert lora_text.parse_rows(lora_text.format_rows([row])) == [row]


TEXTS = {
    "spaces behind a colon": f"down:{' ' * LONG}x",
    "spaces": f"{' ' * LONG}!",
    "colons": ":" * LONG,
    "letters": "a" * LONG,
    "commas": "1," * (LONG // 4),
    "spaces behind": f"down:0.5{' ' * LONG}",
}


@pytest.mark.parametrize("what", sorted(TEXTS))
def test_block_strengths_are_read_in_linear_time(what):
    in_time(3, block_strengths, TEXTS[what])


def test_spaces_around_colons_are_still_free():
    assert str(block_strengths("down : 0.5 mid:1\tattn :\n0.8")) == str(
        block_strengths("down:0.5 mid:1 attn:0.8")
    )


STEPS = {
    "spaces": f"0{' ' * LONG}!",
    "commas": f"0-0.5{',' * LONG}x",
    "spans": " ".join(f"{i / LONG}-{(i + 1) / LONG}" for i in range(LONG // 8)),
    "points": "0:1 " * (LONG // 4),
    "digits": f"0-0.{'1' * LONG}x",
    "colons": ":" * LONG,
}


@pytest.mark.parametrize("what", sorted(STEPS))
def test_steps_are_read_in_linear_time(what):
    assert in_time(2, steps.Steps.parse, STEPS[what]) is None


NUMBERS = {
    "large": "1e999999999",
    "small": "1e-999999999",
    "range": "0..1e999999999",
    "step": "0..1 step 1e-999999999",
    "digits": "9" * LONG,
    "digits of a range": "1.." + "1" * LONG,
}


@pytest.mark.parametrize("what", sorted(NUMBERS))
def test_numbers_of_a_billion_digits_are_not_written_out(what):
    start = time.process_time()
    with pytest.raises(PackError):
        sweep_values.read_sweep("strength", NUMBERS[what])
    assert time.process_time() - start < 2


def test_a_recipe_whose_merge_keys_double():
    """Forty lines of YAML stand for 2 ** 40 values."""
    pytest.importorskip("yaml")
    lines = [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 41)]
    with pytest.raises(ParameterError, match="merge keys"):
        parsed_text("\n".join(["a0: &a0 {x: 1}", *lines]))
    assert parsed_text("a: &a {x: 1}\nb: *a") == {"a": {"x": 1}, "b": {"x": 1}}


def test_a_recipe_of_brackets():
    """PyYAML takes hours for as many as fit into a recipe."""
    start = time.process_time()
    for text in ("[" * 100_000, "{a: " * 100_000):
        with pytest.raises(ParameterError, match=r"brackets|not valid JSON"):
            parsed_text(text)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", ["²", "1²2", "a.²", "٣", "1٣", "block.²"])
def test_digits_of_other_scripts_in_names(name):
    """``isdigit`` is true for signs that ``int`` cannot read."""
    tensors = {f"{name}.lora_up.weight": torch.ones(2, 1), f"{name}.lora_down.weight": torch.ones(1, 2)}
    tensors |= {"a.lora_up.weight": torch.ones(2, 1), "a.lora_down.weight": torch.ones(1, 2)}
    merged = merge_ops.merge([from_tensors("x", tensors)])
    assert len(list(merged.layers)) == 2
    assert order.in_model_order([name, "a"])
    assert order.section_of(name)
