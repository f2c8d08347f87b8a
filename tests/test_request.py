"""What was asked of a merge: one record with every default filled in, which the result keeps."""

import dataclasses
import pickle

import pytest

from merge_ops import BlockStrengths, ParameterError
from merge_ops.merging import merge
from merge_ops.merging.request import Request, settle_rank


def test_the_result_keeps_what_was_asked_for(make_lora):
    loras = [make_lora(name, seed=i) for i, name in enumerate("ab")]
    request = merge(
        loras, [0.7, -1], "ties", text_weights=[1, 2], blocks=["down:0.5", None], rank=3, scale=2, seed=5,
        density=0.25,
    ).request  # fmt: skip
    assert request.weights == (0.7, -1.0) and request.text_weights == (1.0, 2.0)
    assert request.blocks == (BlockStrengths.parse("down:0.5"), None)
    settings = request.settings
    assert (settings.method.name, settings.space, settings.rank) == ("ties", "delta", 3)
    assert (settings.scale, settings.seed, request.rank, request.method_name) == (2.0, 5, 3, "ties")
    assert settings.params == {"density": 0.25, "majority_sign_method": "total"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.weights = ()


def test_defaults(make_lora):
    loras = [make_lora(name, seed=i) for i, name in enumerate("ab")]
    request = Request.of(loras)
    assert request.weights == request.text_weights == (1.0, 1.0) and request.blocks == (None, None)
    assert request.settings.method.name == "linear" and request.rank is None
    assert request == merge(loras).request


def test_pefts_default_rank_is_settled_from_the_loras(make_lora):
    """Its ``svd_rank`` is the largest rank; a rank that is given, or is not used, stays."""
    loras = [make_lora("a", rank=4), make_lora("b", rank=7, seed=1)]
    for name, given, wanted in (("svd", None, 7), ("ties_svd", 2, 2), ("cat", None, None), ("cat", 3, None)):
        request = settle_rank(Request.of(loras, combination_type=name, svd_rank=given), loras)
        assert request.settings.rank == wanted and request.method_name == name
    assert settle_rank(Request.of(loras), loras).rank is None
    alone = Request.of(loras[:1], combination_type="ties_svd")
    assert settle_rank(alone, loras[:1]).settings.method.name == "linear" and alone.rank is None


def test_everything_is_checked_before_anything_is_read(make_lora):
    """A typing error is found before a base model is opened."""
    with pytest.raises(ParameterError, match=r"unknown reader 'pfet' .*'peft'"):
        merge([make_lora()], reader="pfet", base="there is no such file.safetensors")


def test_layers_are_a_read_only_mapping(make_lora):
    """By name and in a fixed order; a result can be sent to another process."""
    merged = merge([make_lora()], [0.5])
    assert list(merged.layers) == ["block.2.fc", "block.10.fc", "c_attn", "conv", "embed", "pointwise"]
    assert merged.layers["conv"] is merged.layer("conv")
    with pytest.raises(TypeError):
        merged.layers["conv"] = None
    with pytest.raises(AttributeError):
        merged.layers = {}
    sent = pickle.loads(pickle.dumps(merged))
    assert (sent.delta("conv") == merged.delta("conv")).all()
