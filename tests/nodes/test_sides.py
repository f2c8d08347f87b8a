"""Which LoRAs of a stack are for which of two models."""

import json

import pytest
import torch

from tests.nodes.pack import ROOT, pack_module

stack_entries = pack_module("nodes.values.stack_entries")
sides = pack_module("nodes.values.sides")
from_tensors = pack_module("merge_ops.formats").from_tensors
A = torch.ones(2, 8)
CASES = json.loads((ROOT / "tests" / "nodes" / "experts_cases.json").read_text(encoding="utf-8"))


def entries_of(*named):
    """Entries of files, each a name or (name, what its row says, title in its metadata)."""
    entries = []
    for one in named:
        name, on, title = (one, "", "") if isinstance(one, str) else (*one, "")[:3]
        stem = "diffusion_model.blocks.0.self_attn.q.lora"
        lora = from_tensors(
            name.rpartition("/")[2],
            {f"{stem}_A.weight": A, f"{stem}_B.weight": A.T},
            {"modelspec.title": title},
        )
        entries.append(stack_entries.StackEntry(lora, 1.0, 1.0, f"{name}.safetensors", on=on))
    return entries


@pytest.mark.parametrize(("names", "experts"), CASES)
def test_names(scripts, names, experts):
    """What names say, to the nodes and to the list in the editor."""
    assert sides.sides_of(entries_of(*names)) == [expert or "both" for expert in experts]
    found = "async (names) => (await import('/js/list/experts.js')).expertsOf(names)"
    assert scripts.evaluate(found, names) == experts


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ([("a", "", "A Style low_noise"), ("b_high_noise", "low")], ["low", "low"]),
        ([("a_high_noise", "both"), ("b", "high")], ["both", "high"]),
        ([("a_high", ""), ("a_low", "high")], ["high", "high"]),
    ],
)  # fmt: skip
def test_sides(named, expected):
    """A row's word counts more than a name, and a title in the metadata as much."""
    assert sides.sides_of(entries_of(*named)) == expected


def test_both_models_get_what_states_no_side():
    """In the order of the list."""
    entries = entries_of("style_high_noise", "char", "style_low_noise", ("ink", "low"))
    high, low = sides.split_sides(entries)
    assert [entry.lora.name for entry in high] == ["style_high_noise", "char"]
    assert [entry.lora.name for entry in low] == ["char", "style_low_noise", "ink"]


@pytest.mark.parametrize(
    ("named", "high", "low"),
    [
        (["style_high_noise", "char"], "style_high_noise (by its name), char", "char"),
        ([("a", "low"), ("b", "both")], "b (on=both)", "a (on=low), b (on=both)"),
        ([("a_high_noise", "low")], "", "a_high_noise (on=low)"),
    ],
)
def test_names_for_the_user(named, high, low):
    """Which LoRAs each model gets, and how that is known."""
    assert sides.name_sides(entries_of(*named)) == (high, low)


def test_doubts():
    """A bare word without its counterpart; not where the row says it, or the pair is complete."""
    (line,) = sides.list_doubts(entries_of("char_HIGH", "ink", "style_high_noise"))
    assert line.startswith("char_HIGH is merged for both models") and "write :on=high" in line
    (line,) = sides.list_doubts(entries_of("low_light"))
    assert "write :on=low" in line
    for quiet in (["a_HIGH", "a_LOW"], [("char_HIGH", "both")], [("char_HIGH", "low")], ["highway"]):
        assert sides.list_doubts(entries_of(*quiet)) == []


def test_refused_without_a_second_model():
    """Only rows that say low do it: a name alone decides nothing."""
    sides.refuse_low(entries_of("a_low_noise", ("b", "high"), ("c", "both")))
    with pytest.raises(
        sides.ParameterError, match=r"b, c is for the low-noise model \(on=low\): connect model_low"
    ):
        sides.refuse_low(entries_of("a", ("b", "low"), ("c", "low")))


def of_both(*parts):
    """An entry of a file with layers of these parts of diffusers' pipeline, and of a text encoder."""
    tensors = {}
    for number, part in enumerate(parts):
        stem = f"{part}.blocks.0.attn1.to_q" if "text" not in part else f"{part}.layers.0.self_attn.q_proj"
        tensors |= {f"{stem}.lora_A.weight": A + number, f"{stem}.lora_B.weight": A.T}
    return stack_entries.StackEntry(from_tensors("x", tensors), 1.0, 1.0)


def test_a_file_of_both_experts_is_divided():
    """Each model has its part under the names of a lone model, and text encoders stay with both."""
    whole = of_both("transformer", "transformer_2", "text_encoder")
    layer = "transformer.blocks.0.attn1.to_q"
    (high,), (low,) = sides.split_sides([whole])
    for entry, number, part in ((high, 0, "transformer"), (low, 1, "transformer_2")):
        assert entry.lora.name == f"x ({part})" and len(entry.lora.layers) == 2
        assert torch.equal(entry.lora.layers[layer].down, A + number)
        assert entry.lora.layers[layer].key == layer
        assert any(name.startswith("text_encoder") for name in entry.lora.layers)
    assert [entry.lora.name for entry in sides.take_once([whole])] == ["x (transformer)"]
    assert sides.name_sides([whole]) == ("x (by its layers)", "x (by its layers)")
    second = of_both("transformer_2")
    assert sides.sides_of([second, of_both("transformer")]) == ["low", "both"]
    assert sides.split_sides([of_both("transformer")]).low[0].lora.name == "x"
    line = sides.list_doubts([stack_entries.StackEntry(whole.lora, 1.0, 1.0, on="low")])[0]
    assert "its layers of transformer are left out, since it is for the low-noise model" in line


def test_places_of_what_meets():
    """For Inspect: only where LoRAs are for different models."""
    assert sides.group_sides(entries_of("a", "b")) == sides.group_sides(entries_of("a_high_noise", "b")) == []
    assert sides.group_sides(entries_of("a_high_noise", "b", "c_low_noise")) == [[0, 1], [1, 2]]
