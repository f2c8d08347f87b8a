"""Trained LoRAs by other people: three SD1.5 files in two spellings, and pickles."""

import os
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

import merge_ops
from merge_ops import COMBINATION_TYPES, METHODS, IncompatibleLoraError, LoraFormatError
from merge_ops.formats.pti import pti_layers
from tests import laws

# Other people's files, which the repository must not hold: .ci/run names their folder where it has one. Files
# of the same formats are made by the other tests, so without them only their being real is missing.
FOLDER = os.environ.get("LORA_ALLOY_REAL_LORAS")
pytestmark = pytest.mark.skipif(not FOLDER, reason="LORA_ALLOY_REAL_LORAS names no folder of trained LoRAs")

LEGACY, RANK_4, RANK_1 = "diffusers_legacy_catundchat", "pti_analog_svd_rank4", "pti_disney_rank1"
INNER = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
CHECKED = [f"{INNER}.attn1.to_q", f"{INNER}.attn2.to_k", f"{INNER}.attn2.to_out.0"]
DENSITY = 0.4


@pytest.fixture(scope="module")
def real():
    return {n: merge_ops.load(Path(FOLDER) / f"{n}.safetensors") for n in (LEGACY, RANK_4, RANK_1)}


@pytest.fixture(scope="module")
def modules():
    """Weight shapes of SD1.5's own UNet."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return {f"unet.{name}": m.weight.shape for name, m in unet.named_modules() if hasattr(m, "weight")}


def few(lora):
    """Some layers only, so that every method can be run."""
    return type(lora)(lora.name, {name: lora.layers[name] for name in CHECKED}, lora.dialect)


def test_the_shared_attention_layers(real):
    shared = set.intersection(*(set(lora.layers) for lora in real.values()))
    assert len(shared) == 128
    assert all(".attn" in name for name in shared)
    assert {name: lora.rank for name, lora in real.items()} == {LEGACY: 4, RANK_4: 4, RANK_1: 1}
    assert set(real[RANK_1].unmerged) == {"<s1>", "<s2>"}


@pytest.mark.parametrize("name", [LEGACY, RANK_4, RANK_1])
def test_every_layer_has_the_shape_of_the_module_it_names(name, real, modules):
    layers = {key: layer for key, layer in real[name].layers.items() if key.startswith("unet.")}
    assert len(layers) >= 128
    for key, layer in layers.items():
        assert layer.weight_shape == tuple(modules[key]), key


def test_pti_order_of_the_text_model():
    """Its layers are all of one shape, so the order is checked against CLIP's own modules."""
    with torch.device("meta"):
        clip = CLIPTextModel(CLIPTextConfig())
    names = [n for n, m in clip.named_modules() if isinstance(m, torch.nn.Linear) and "self_attn" in n]
    expected = [f"text_encoder.text_model.{name.removeprefix('text_model.')}" for name in names]
    assert pti_layers("text_encoder", {}) == expected


def raw_delta(name, layer):
    """Straight from the file, in float64."""
    tensors = load_file(Path(FOLDER) / f"{name}.safetensors")
    up, down = (f"{layer.key}:up", f"{layer.key}:down") if ":" in layer.key else (
        f"{layer.key}.up.weight", f"{layer.key}.down.weight")  # fmt: skip
    return tensors[up].double() @ tensors[down].double()


def trimmed(delta):
    keep = round(DENSITY * delta.numel())
    threshold = delta.abs().flatten().kthvalue(delta.numel() - keep + 1).values
    return torch.where(delta.abs() >= threshold, delta, 0)


def elected(deltas, weights):
    """TIES's vote and disjoint mean over ``(n, out, in)``."""
    sign = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    agree = deltas * sign > 0
    summed = (torch.where(agree, deltas, 0) * torch.tensor(weights).view(-1, 1, 1)).sum(0)
    return summed / agree.sum(0).clamp(min=1)


@pytest.mark.parametrize("method", ["linear", "ties", "magnitude_prune"])
def test_methods_against_a_naive_reference(method, real):
    """Both spellings and both ranks in one merge; entries right at a threshold may fall to either side."""
    weights = [0.7, 0.5, 0.3]
    params = {} if method == "linear" else {"density": DENSITY}
    merged = merge_ops.merge([few(lora) for lora in real.values()], weights, method, **params)
    for layer in CHECKED:
        deltas = torch.stack([raw_delta(name, lora.layers[layer]) for name, lora in real.items()])
        if method != "linear":
            deltas = torch.stack([trimmed(delta) for delta in deltas])
        naive = (deltas * torch.tensor(weights).view(-1, 1, 1)).sum(0)
        expected = elected(deltas, weights) if method == "ties" else naive
        difference = (merged.delta(layer).double() - expected).abs()
        assert (difference > 1e-5 * expected.abs().max()).sum() <= 8, layer
        assert difference.norm() < 2e-3 * expected.norm()


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_random_methods_keep_the_density_and_the_expected_value(method, real):
    loras = [few(real[LEGACY])]
    merged = merge_ops.merge(loras, method=method, density=DENSITY)
    for layer in CHECKED:
        delta, exact = merged.delta(layer), raw_delta(LEGACY, real[LEGACY].layers[layer]).float()
        kept = delta != 0
        assert float(kept.float().mean()) == pytest.approx(DENSITY, abs=0.005)
        torch.testing.assert_close(delta[kept], exact[kept] / DENSITY, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_saved_within_its_reported_error(method, real, tmp_path):
    merged = laws.merge([few(lora) for lora in real.values()], [0.7, 0.5, 0.3], method)
    report = merge_ops.save(merged, tmp_path / "x.safetensors", 16)
    read = merge_ops.load(tmp_path / "x.safetensors")
    errors = {line.name: line.error for line in report.layers}
    for layer in CHECKED:
        exact = merged.delta(layer).double()
        error = float((read.layers[layer].delta().double() - exact).norm() / exact.norm())
        assert error == pytest.approx(errors[layer], rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("name", COMBINATION_TYPES)
def test_every_combination_type(name, real):
    """Those in factor space need equal ranks, and say so; the others take all three files."""
    loras = [few(lora) for lora in real.values()]
    in_factors = COMBINATION_TYPES[name].space == "factors"
    if in_factors:
        with pytest.raises(IncompatibleLoraError, match="ranks differ"):
            merge_ops.merge(loras, combination_type=name)
    used = loras[:2] if in_factors else loras
    merged = merge_ops.merge(used, [0.7, 0.3, 0.5][: len(used)], combination_type=name, density=0.5)
    assert tuple(merged.layers) == tuple(sorted(CHECKED))
    for layer in CHECKED:
        delta = merged.delta(layer)
        assert delta.isfinite().all()
        assert delta.norm() > 0
        assert merged.factors(layer)[1].shape[0] == (9 if name == "cat" else 4)


def test_all_layers_of_all_three_files(real, tmp_path):
    merged = merge_ops.merge(list(real.values()), [0.7, 0.5, 0.3])
    assert len(merged.layers) == len(set().union(*(lora.layers for lora in real.values())))
    report = merge_ops.save(merged, tmp_path / "x.safetensors")
    assert report.format == "kohya"
    assert report.total_error < 1e-3
    assert merge_ops.load(tmp_path / "x.safetensors").layers.keys() == set(merged.layers)


@pytest.mark.parametrize("name", ["cloneofsimo_lora_pop.pt", "cloneofsimo_kiriko2.ti.pt"])
def test_pickles_are_refused(name):
    with pytest.raises(LoraFormatError, match=f"{name}: this is a pickle.*convert it"):
        merge_ops.load(Path(FOLDER) / name)
