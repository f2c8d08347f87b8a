"""Which LoRAs of a stack are for which of two models."""

import pytest
import torch

from tests.nodes.pack import pack_module

stack_entries = pack_module("nodes.values.stack_entries")
sides = pack_module("nodes.values.sides")
from_tensors = pack_module("merge_ops.formats").from_tensors
A = torch.ones(2, 8)


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


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (["style_high_noise", "style_low_noise", "char"], ["high", "low", "both"]),
        (["wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise"], ["high"]),
        (["Instagirl_hinoise", "Instagirl_lownoise"], ["high", "low"]),
        (["fox-HighNoise", "cat-lowNoise_v2"], ["high", "low"]),
        (["WAN-2.2-T2V-HIGH-v1", "WAN-2.2-T2V-LOW-v1"], ["high", "low"]),
        (["high/ink", "low/ink"], ["high", "low"]),
        (["high_noise/ink", "low_noise/wash"], ["high", "low"]),
        (["high_heels", "low_light", "highway", "glow"], ["both"] * 4),
        (["only_HIGH"], ["both"]),
        (["high_noise_to_low_noise"], ["both"]),
        ([("a", "", "A Style low_noise"), ("b_high_noise", "low")], ["low", "low"]),
        ([("a_high_noise", "both"), ("b", "high")], ["both", "high"]),
        ([], []),
    ],
)  # fmt: skip
def test_sides(named, expected):
    """A row's word counts more than a name; a bare word counts beside its counterpart only."""
    assert sides.sides_of(entries_of(*named)) == expected


def test_both_models_get_what_states_no_side():
    """In the order of the list."""
    entries = entries_of("style_high_noise", "char", "style_low_noise", ("ink", "low"))
    high, low = sides.split_sides(entries)
    assert [entry.lora.name for entry in high] == ["style_high_noise", "char"]
    assert [entry.lora.name for entry in low] == ["char", "style_low_noise", "ink"]
