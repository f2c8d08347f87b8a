"""(IA)3 folders merged without the base model, as PEFT merges them."""

import json

import pytest
import torch

import merge_ops
from merge_ops import IncompatibleLoraError, MergeError
from merge_ops.merging import merge
from merge_ops.models.diffusers import patched
from tests.text.folders import (
    MODELS,
    SCALED,
    assert_applied_and_saved,
    assert_same,
    logits,
    lora,
    scaled,
)


@pytest.mark.parametrize("model", SCALED)
def test_scalings_are_merged_as_peft_does(model, made, tmp_path):
    """With and without the base model, where all have the layer and the weights sum to 1; saved as (IA)3."""
    one, own = scaled(made, model, "one", 1)
    two, _ = scaled(made, model, "two", 2)
    own.load_adapter(two, "two")
    own.add_weighted_adapter(["default", "two"], [0.3, 0.7], "both")
    own.set_adapter("both")
    loras, wanted = [merge_ops.load(one), merge_ops.load(two)], logits(own)
    assert_applied_and_saved(merge(loras, [0.3, 0.7]), model, wanted, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["peft_type"] == "IA3"
    base = MODELS[model]()
    with patched(base, merge(loras, [0.3, 0.7], base=MODELS[model]())):
        assert_same(logits(base), wanted)


def test_a_missing_scaling_is_the_identity(made):
    """The layer of one adapter alone is that adapter at its weight; PEFT multiplies by the weight alone."""
    one = merge_ops.load(scaled(made, "llama", "one", 1)[0])
    two = merge_ops.load(scaled(made, "llama", "two", 2, ["q_proj"])[0])
    merged, name = merge([one, two], [0.5, 0.5]), "model.layers.0.mlp.down_proj"
    assert torch.allclose(merged.ia3[name].added, 0.5 * one.base_dependent[name].added)
    with_base = merge([one, two], [0.5, 0.5], base=MODELS["llama"]())
    weight = MODELS["llama"]().get_submodule(name).weight
    assert torch.allclose(with_base.delta(name), weight * merged.ia3[name].added, atol=1e-7)
    negative = merge([two, one], [-0.5, -0.5])
    assert all(torch.equal(negative.ia3[n].added, -merged.ia3[n].added) for n in merged.ia3)


def test_scalings_do_not_mix_without_the_base_model(made, tmp_path):
    """Another method, a layer that a LoRA adapts too, and a folder for both are refused."""
    one = merge_ops.load(scaled(made, "llama", "one", 1)[0])
    plain = merge_ops.load(made("llama", lora(target_modules=["q_proj"]), "plain")[0])
    other = merge_ops.load(made("llama", lora(target_modules=["v_proj"]), "other")[0])
    with pytest.raises(IncompatibleLoraError, match="base="):
        merge([one], method="ties")
    with pytest.raises(IncompatibleLoraError, match=r"q_proj is scaled by one.*plain.*base="):
        merge([one, plain])
    with pytest.raises(MergeError, match="one PEFT folder cannot hold"):
        merge_ops.save(merge([one, other]), tmp_path / "out", format="peft")
    with pytest.raises(MergeError, match="format='peft'"):
        merge_ops.save(merge([one]), tmp_path / "out.safetensors", format="kohya")
