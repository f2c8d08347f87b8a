"""Biases, weights of norms, set weights and widened weights: read, merged, saved, and read back."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from merge_ops import IncompatibleLoraError, Lora, MergeError
from merge_ops.merging import merge
from tests.laws import ENTRYWISE, WITHOUT_RECORDING

PROJ, NORM = "unet.mid_block.attentions.0.proj_in", "unet.conv_norm_out"
STEM, NORM_STEM = (f"lora_{name.replace('.', '_')}" for name in (PROJ, NORM))


def tensors(seed, dtype=torch.float32):
    """A LoRA with a bias, and a norm, as kohya's and Wan's files spell them."""
    generator = torch.Generator().manual_seed(seed)

    def made(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        f"{STEM}.lora_up.weight": made(6, 2),
        f"{STEM}.lora_down.weight": made(2, 5),
        f"{STEM}.alpha": torch.tensor(1.0),
        f"{STEM}.diff_b": made(6),
        f"{NORM_STEM}.w_norm": made(8),
        f"{NORM_STEM}.b_norm": made(8),
    }


@pytest.fixture
def loras(tmp_path):
    for seed in range(3):
        save_file(tensors(seed), tmp_path / f"{seed}.safetensors")
    return [merge_ops.load(tmp_path / f"{seed}.safetensors") for seed in range(3)]


def test_what_is_read(loras):
    held = tensors(0)
    deltas = {name: layer.delta() for name, layer in loras[0].layers.items()}
    assert torch.equal(deltas[f"{PROJ}.bias"], held[f"{STEM}.diff_b"])
    assert torch.equal(deltas[NORM], held[f"{NORM_STEM}.w_norm"])
    assert torch.equal(deltas[f"{NORM}.bias"], held[f"{NORM_STEM}.b_norm"])
    assert len(deltas) == 4 and not loras[0].unmerged


@pytest.mark.parametrize("space", ["delta", "factors"])
@pytest.mark.parametrize("method", ENTRYWISE)
def test_vectors_are_merged_as_one_column(method, space, loras):
    """In factor space too: a vector has one factor, itself."""
    params = {p.name: 0.5 for p in merge_ops.METHODS[method].params if p.name == "density"}
    merged = merge(loras, [0.5, -1.0, 2.0], method, space=space, seed=3, **params)
    values = torch.stack([lora.layers[NORM].delta() for lora in loras])[:, :, None]
    if "generator" not in merge_ops.METHODS[method].supplied:
        weights, fn = torch.tensor([0.5, -1.0, 2.0]), merge_ops.METHODS[method].fn
        defaults = merge_ops.METHODS[method].resolve(params)
        assert torch.allclose(merged.delta(NORM), fn(values, weights, **defaults).flatten(), atol=1e-6)
    assert merged.delta(NORM).shape == (8,)


@pytest.mark.parametrize("method", [name for name in WITHOUT_RECORDING if name not in ENTRYWISE])
def test_vectors_are_merged_as_matrices_of_one_column(method, loras):
    """By methods on factors: the same numbers as a linear layer with one input."""
    as_matrices = [Lora(lora.name, {NORM: replace(lora.layers[NORM], layout="linear")}) for lora in loras]
    merged = merge(loras, [0.5, -1.0, 2.0], method)
    wanted = merge(as_matrices, [0.5, -1.0, 2.0], method)
    assert merged.delta(NORM).shape == (8,)
    assert merged.delta(NORM).any()
    assert torch.allclose(merged.delta(NORM), wanted.delta(NORM)[:, 0], atol=1e-6)


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_saved_and_read_back(method, dtype, loras, tmp_path):
    """Each layer within the error that is reported; biases and norms at any rank."""
    merged = merge(loras, [0.5, -1.0, 2.0], method)
    report = merge_ops.save(merged, tmp_path / "out.safetensors", rank=1, dtype=dtype)
    saved = merge_ops.load(tmp_path / "out.safetensors")
    assert set(saved.layers) == set(merged.layers)
    errors = {line.name: line.error for line in report.layers}
    for name in (NORM, f"{NORM}.bias", f"{PROJ}.bias"):
        found, wanted = saved.layers[name].delta(), merged.delta(name)
        assert float((found - wanted).norm() / wanted.norm()) == pytest.approx(errors[name], abs=1e-7)
        assert errors[name] <= torch.finfo(dtype).eps


def test_a_format_that_cannot_hold_them_says_so(loras, tmp_path):
    for form in ("diffusers", "peft"):
        with pytest.raises(MergeError, match=rf"norm, which a {form} file cannot hold; use format='kohya'"):
            merge_ops.save(merge(loras), tmp_path / f"out{'.safetensors' * (form != 'peft')}", format=form)
    assert list(tmp_path.glob("out*")) == []


SET = {f"{NORM_STEM}.set_weight": torch.arange(8.0)}


def test_set_weights_are_passed_if_all_agree(tmp_path):
    """Like BFL's: put in place of the base model's weight."""
    for name, extra in (("a", SET), ("b", SET), ("c", {f"{NORM_STEM}.set_weight": torch.ones(8)})):
        pair = {key: value for key, value in tensors(1).items() if "lora_" in key and "norm" not in key}
        save_file(pair | extra, tmp_path / f"{name}.safetensors")
    a, b, c = (merge_ops.load(tmp_path / f"{name}.safetensors") for name in "abc")
    merged = merge([a, b])
    assert torch.equal(merged.whole_weights[NORM].value, torch.arange(8.0))
    assert [row.status for row in merged.report.layers if row.name == NORM] == ["passed"]
    merge_ops.save(merged, tmp_path / "out.safetensors")
    assert torch.equal(
        merge_ops.load(tmp_path / "out.safetensors").whole_weights[NORM].value, torch.arange(8.0)
    )
    with pytest.raises(IncompatibleLoraError, match=f"a and c hold different weights for {NORM}"):
        merge([a, b, c])
    assert torch.equal(merge([a, b, c], keep="c").whole_weights[NORM].value, torch.ones(8))


def test_set_weights_in_two_spellings_are_one(tmp_path):
    """Different values are seen to differ, whatever the files call the weight."""
    for i, stem in enumerate(("lora_unet_double_blocks_0_norm", "diffusion_model.double_blocks.0.norm")):
        save_file({f"{stem}.set_weight": torch.full((3,), float(i))}, tmp_path / f"{i}.safetensors")
    loras = [merge_ops.load(tmp_path / f"{i}.safetensors") for i in range(2)]
    with pytest.raises(IncompatibleLoraError, match="hold different weights"):
        merge(loras)
    assert len(merge(loras, keep="1").whole_weights) == 1


def test_widened_weights_keep_their_shape(tmp_path):
    """BFL's control LoRAs widen the first layer; the merge of such files does too."""
    extra = {f"{STEM}.reshape_weight": torch.tensor([6, 5])}
    pair = {key: value for key, value in tensors(0).items() if key.startswith(STEM) and "diff" not in key}
    save_file(pair | extra, tmp_path / "wide.safetensors")
    lora = merge_ops.load(tmp_path / "wide.safetensors")
    merged = merge([lora, lora], [0.5, 0.5], "ties", density=1.0)
    merge_ops.save(merged, tmp_path / "out.safetensors")
    assert merge_ops.load(tmp_path / "out.safetensors").layers[PROJ].padded_to == (6, 5)
    with pytest.raises(MergeError, match="widens"):
        merge_ops.save(merged, tmp_path / "out2.safetensors", format="diffusers")
