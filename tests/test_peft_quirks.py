"""Where PEFT 0.21.2 is peculiar: what we do alike, and what we do not reproduce."""

import math

import pytest
import torch
from torch import nn

pytest.importorskip("peft", minversion="0.21.2")
from peft import LoraConfig, get_peft_model

from merge_ops import COMBINATION_TYPES, IncompatibleLoraError, ParameterError, load
from merge_ops.merging import merge

SVD_TYPES = [name for name, row in COMBINATION_TYPES.items() if row.truncated]
FACTOR_TYPES = [name for name, row in COMBINATION_TYPES.items() if row.space == "factors"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(150, 120)
        self.fc2 = nn.Linear(40, 30)


@pytest.fixture
def adapters(tmp_path):
    """Factory: a PEFT model with one adapter a configuration, and our reading of their folders."""

    def make(*configs):
        torch.manual_seed(0)
        names = ["one", "two", "three"][: len(configs)]
        model = None
        for name, own in zip(names, configs, strict=True):
            config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["fc1", "fc2"], **own})
            model = model or get_peft_model(Net(), config, adapter_name=name)
            if name not in model.peft_config:
                model.add_adapter(name, config)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.normal_()
        model.save_pretrained(tmp_path)
        return model, [load(tmp_path / name) for name in names]

    return make


def peft_delta(model, weights, combination_type, layer="fc1", **more):
    names = [n for n in ("one", "two", "three") if n in model.peft_config]
    model.add_weighted_adapter(names, weights, "merged", combination_type, **more)
    return getattr(model.base_model.model, layer).get_delta_weight("merged").detach()


def relative(found, wanted):
    return float(
        torch.linalg.vector_norm(found.double() - wanted.double()) / torch.linalg.vector_norm(wanted)
    )


@pytest.mark.parametrize("combination_type", COMBINATION_TYPES)
def test_a_single_adapter_is_linear(adapters, combination_type):
    model, loras = adapters({})
    wanted = peft_delta(model, [-0.6], combination_type, density=0.2)
    found = merge(loras, [-0.6], combination_type=combination_type, density=0.2).delta("fc1")
    assert relative(found, wanted) < 1e-5
    assert relative(found, -0.6 * loras[0].layers["fc1"].delta()) < 1e-5


@pytest.mark.parametrize("combination_type", ["cat", "svd", "ties_svd", "magnitude_prune_svd"])
def test_ranks_may_differ_by_adapter_and_layer_where_the_type_allows(adapters, combination_type):
    model, loras = adapters({"r": 3, "rank_pattern": {"fc1": 5}}, {"r": 2, "alpha_pattern": {"fc2": 9}})
    more = {} if COMBINATION_TYPES[combination_type].method == "linear" else {"density": 0.5}
    merged = merge(loras, [0.7, -0.4], combination_type=combination_type, **more)
    assert relative(merged.delta("fc1"), peft_delta(model, [0.7, -0.4], combination_type, **more)) < 1e-4
    fc2 = model.base_model.model.fc2.get_delta_weight("merged").detach()
    assert relative(merged.delta("fc2"), fc2) < 1e-4
    if combination_type != "cat":
        assert merged.factors("fc2")[0].shape[1] == 5  # the largest rank of any layer of any adapter


@pytest.mark.parametrize("combination_type", ["linear", "ties", "magnitude_prune"])
def test_the_same_rank_pattern_in_all_adapters_is_legal_on_the_factors(adapters, combination_type):
    own = {"r": 4, "rank_pattern": {"fc2": 2}}
    model, loras = adapters(own, own)
    more = {} if combination_type == "linear" else {"density": 0.5}
    merged = merge(loras, [0.7, 0.4], combination_type=combination_type, **more)
    for layer in ("fc1", "fc2"):
        wanted = peft_delta(model, [0.7, 0.4], combination_type, layer, **more)
        model.delete_adapter("merged")
        assert relative(merged.delta(layer), wanted) < 1e-5


@pytest.mark.parametrize("combination_type", FACTOR_TYPES)
def test_unequal_ranks_on_the_factors_are_an_error_in_both(adapters, combination_type):
    model, loras = adapters({"r": 3}, {"r": 4})
    with pytest.raises(ValueError, match="same r value"):
        peft_delta(model, [1.0, 1.0], combination_type, density=0.5)
    with pytest.raises(IncompatibleLoraError, match=r"fc1: the ranks differ .*space='delta'"):
        merge(loras, combination_type=combination_type, density=0.5)


def test_linear_has_cross_terms_as_in_peft_and_cat_does_not(adapters):
    """Two identical adapters at 0.5 each give twice the delta, so we default to the delta."""
    _, loras = adapters({}, {})
    twins = [loras[0], loras[0]]
    alone = loras[0].layers["fc1"].delta()
    assert relative(merge(twins, [0.5, 0.5], combination_type="linear").delta("fc1"), 2 * alone) < 1e-5
    assert relative(merge(twins, [0.5, 0.5], combination_type="cat").delta("fc1"), alone) < 1e-5
    assert relative(merge(twins, [0.5, 0.5], "linear").delta("fc1"), alone) < 1e-5


@pytest.mark.parametrize("density", [0.3, 0.5])
def test_dare_has_the_statistics_of_peft_without_shared_masks(adapters, density):
    """On both sides: the share that survives, and no bias, each within 3 sigma over the entries of fc1."""
    model, loras = adapters(
        {"r": 64, "lora_alpha": 64}, {"r": 64, "lora_alpha": 64, "target_modules": ["fc2"]}
    )
    peft_delta(model, [1.0, 1.0], "dare_linear", density=density)
    source = model.base_model.model.fc1
    theirs = source.lora_A["merged"].weight.detach()
    ours = merge(loras, [1.0, 1.0], combination_type="dare_linear", density=density).factors("fc1")[1]
    original = source.lora_A["one"].weight.detach()
    for down in (theirs, ours):
        kept = down != 0
        sigma = math.sqrt(density * (1 - density) / kept.numel())
        assert abs(float(kept.double().mean()) - density) < 3 * sigma
        torch.testing.assert_close(down[kept], original[kept] / density)
        spread = math.sqrt((1 - density) / density * float(original.double().pow(4).sum()))
        assert abs(float((down.double() * original).sum() - original.double().square().sum())) < 3 * spread


@pytest.mark.parametrize("combination_type", ["dare_linear", "dare_linear_svd", "dare_ties"])
def test_density_zero_is_zero_and_not_nan(adapters, combination_type):
    """PEFT divides 0 by 0, which is NaN or an error of LAPACK; we do not reproduce that."""
    model, loras = adapters({}, {})
    try:
        broken = not bool(peft_delta(model, [0.7, 0.3], combination_type, density=0.0).isfinite().all())
    except torch.linalg.LinAlgError:
        broken = True
    assert broken
    merged = merge(loras, [0.7, 0.3], combination_type=combination_type, density=0.0)
    assert not any(bool(merged.delta(name).any()) for name in merged.layers)


def test_too_few_weights_are_an_error(adapters):
    """PEFT drops the adapters that have no weight without a word."""
    model, loras = adapters({}, {})
    assert relative(peft_delta(model, [0.7], "cat"), 0.7 * loras[0].layers["fc1"].delta()) < 1e-5
    with pytest.raises(ParameterError, match="2 LoRAs need 2 weights, but 1 were given"):
        merge(loras, [0.7], combination_type="cat")


def test_dare_without_a_density_uses_the_default_of_the_method(adapters):
    """PEFT's density is None by default, which is a TypeError there."""
    model, loras = adapters({}, {})
    with pytest.raises(TypeError):
        peft_delta(model, [0.7, 0.3], "ties")
    merged = merge(loras, [0.7, 0.3], combination_type="ties", density=None)
    assert merged.request.settings.params == {"density": 0.5, "majority_sign_method": "total"}


@pytest.mark.parametrize("combination_type", SVD_TYPES)
def test_an_svd_rank_above_the_layer_is_clamped(adapters, combination_type):
    """PEFT makes tensors of the wrong shape or fails; the result is exact and no larger than the layer."""
    _, loras = adapters({}, {})
    more = {} if combination_type == "svd" else {"density": 0.5}
    merged = merge(loras, combination_type=combination_type, svd_rank=500, **more)
    exact = merge(loras, None, COMBINATION_TYPES[combination_type].method, **more)
    for name in merged.layers:
        assert relative(merged.delta(name), exact.delta(name)) < 1e-5
        assert merged.factors(name)[0].shape[1] <= min(merged.layer(name).template.matrix_shape)
