"""Text models with our merge in their weights give the logits of PEFT 0.21.2's ``add_weighted_adapter``."""

import pytest
import torch
from peft.utils import merge_utils

from merge_ops import COMBINATION_TYPES, IncompatibleLoraError
from merge_ops.merging import merge
from merge_ops.merging.fingerprint import fingerprint
from merge_ops.methods.masks import MaskGenerator, mask_key
from merge_ops.models.transformers import patched
from tests.text.models import KINDS, add_adapters, logits, make_model

WEIGHTS = [0.9, -0.5, 0.7]
PARAMS = {"density": 0.4, "majority_sign_method": "frequency"}
SEED = 4


@pytest.fixture(scope="module")
def theirs(kind):
    """The model with its adapters in PEFT, as the folders have them."""
    return add_adapters(make_model(kind), KINDS[kind][1])


def masks_of(model, loras):
    """Our DARE masks by the bytes of what they are for: a factor or a delta of one adapter."""
    found = {}
    for adapter, lora in loras.items():
        who = f"{fingerprint(lora)}.0"
        for name, layer in lora.layers.items():
            target = model.base_model.model.get_submodule(name)
            if layer.layout == "embedding":
                down, up = target.lora_embedding_A[adapter], target.lora_embedding_B[adapter]
            else:
                down, up = target.lora_A[adapter].weight, target.lora_B[adapter].weight
            rows, columns = layer.matrix_shape
            parts = {
                "up": (up, (rows, layer.rank)),
                "down": (down, (layer.rank, columns)),
                "delta": (target.get_delta_weight(adapter), (rows, columns)),
            }
            for part, (tensor, shape) in parts.items():
                generator = MaskGenerator([mask_key(SEED, name, who, part)])
                mask = generator.masks(torch.empty(1, *shape), PARAMS["density"])[0].bool()
                if part == "delta" and (target.fan_in_fan_out or layer.layout == "embedding"):
                    mask = mask.T  # adapters "b" and "c" do not say fan_in_fan_out in their files
                found[tensor.detach().numpy().tobytes()] = mask.reshape(tensor.shape)
    return found


@pytest.mark.parametrize("combination_type", COMBINATION_TYPES)
def test_all_combination_types_give_the_same_logits(kind, theirs, loras, combination_type, monkeypatch):
    """Three adapters, one weight negative, layers that some lack; DARE with our masks in PEFT."""
    masks = masks_of(theirs, loras)
    monkeypatch.setattr(
        merge_utils,
        "random_pruning",
        lambda tensor, density, rescale: tensor * masks[tensor.detach().numpy().tobytes()] / density,
    )
    names, more = list(loras), PARAMS | {"svd_rank": 6 if "svd" in combination_type else None}
    theirs.add_weighted_adapter(names, WEIGHTS, "merged", combination_type, **more)
    theirs.set_adapter("merged")
    wanted = logits(theirs)
    theirs.set_adapter("a")
    theirs.delete_adapter("merged")
    merged = merge(list(loras.values()), WEIGHTS, combination_type=combination_type, seed=SEED, **more)
    model = make_model(kind)
    base = logits(model)
    with patched(model, merged) as patch:
        found = logits(model)
        assert not patch.unmatched
    spread = (wanted - base).abs().max()
    assert spread > 0.05, "the merge is too weak to be tested by logits"
    # PEFT decomposes in single precision, which errs by 5e-4 on some processors
    assert (found - wanted).abs().max() < 1e-3 * spread
    assert torch.equal(logits(model), base)


def test_cat_is_both_adapters_at_once(kind, theirs, loras):
    """PEFT with two adapters active, which is what a merge should be."""
    theirs.base_model.set_adapter(["a", "b"])
    wanted = logits(theirs)
    theirs.base_model.set_adapter("a")
    model = make_model(kind)
    with patched(model, merge([loras["a"], loras["b"]], combination_type="cat")):
        found = logits(model)
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_a_merge_goes_into_a_model_that_peft_has_wrapped(kind, loras):
    """The base layers take it, and what PEFT has active stays active."""
    wrapped = add_adapters(make_model(kind), KINDS[kind][1])
    wrapped.base_model.set_adapter(["a", "c"])
    wanted = logits(wrapped)
    wrapped.base_model.set_adapter("a")
    with patched(wrapped, merge([loras["c"]])):
        found = logits(wrapped)
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_shared_weights_part_for_the_time(make_lora):
    """A LoRA on an embedding that is the output head too changes the embedding alone; then they are one."""
    model = make_model("gpt2")
    before = model.lm_head.weight
    kept = before.detach().clone()
    with patched(model, merge([make_lora(shapes={"transformer.wte": ("embedding", 32, 96, ())})])):
        assert model.lm_head.weight is before and model.transformer.wte.weight is not before
    assert model.transformer.wte.weight is model.lm_head.weight is before
    assert torch.equal(before, kept)


def test_a_layer_that_the_model_lacks_is_named(make_lora):
    """And two that are one module of it."""
    model = make_model("llama")
    with pytest.raises(IncompatibleLoraError, match=r"no module for the layer block\.fc"):
        patched(model, merge([make_lora(shapes={"block.fc": (8, 8)})]))
    both = {"layers.0.mlp.up_proj": (48, 32), "model.layers.0.mlp.up_proj": (48, 32)}
    with pytest.raises(IncompatibleLoraError, match="the same module"):
        patched(model, merge([make_lora(shapes=both)]))
