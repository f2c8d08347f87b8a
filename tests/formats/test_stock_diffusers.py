"""What stock diffusers adds from the files that we write is what was merged."""

import warnings

import pytest
import torch

import merge_ops


def deltas_in(pipe, adapter_deltas, adapter):
    """Canonical name to what the pipeline's adapter adds."""
    found = {f"unet.{name}": delta for name, delta in adapter_deltas(pipe.unet, adapter).items()}
    for name, delta in adapter_deltas(pipe.text_encoder, adapter).items():
        found[f"text_encoder.text_model.{name.removeprefix('text_model.')}"] = delta
    return found


def assert_same(found, merged, tolerance=1e-5):
    assert found.keys() == set(merged.layers)
    for name, delta in found.items():
        expected = merged.delta(name)
        assert (delta - expected).norm() <= tolerance * expected.norm(), name


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_mixed_ranks_and_alphas(form, sd15_files, make_pipe, adapter_deltas, tmp_path):
    """Ranks 2, 3, 6 and 7 in one file, every kind of layer, UNet and text encoder, and no warning."""
    merged = merge_ops.merge([merge_ops.load(file) for file in sd15_files], [0.7, -0.4])
    report = merge_ops.save(merged, tmp_path / "out.safetensors", format=form, dtype=torch.float32)
    assert {layer.rank for layer in report.layers} == {2, 3, 6, 7}
    pipe = make_pipe()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe.load_lora_weights(tmp_path / "out.safetensors", adapter_name="merged")
    assert not [str(w.message) for w in caught if "adapter" in str(w.message) or "target" in str(w.message)]
    assert_same(deltas_in(pipe, adapter_deltas, "merged"), merged)


@pytest.mark.parametrize(("form", "method"), [("kohya", "ties"), ("diffusers", "linear")])
def test_truncated_in_half_precision(form, method, sd15_files, make_pipe, adapter_deltas, tmp_path):
    merged = merge_ops.merge([merge_ops.load(file) for file in sd15_files[::-1]], method=method, rank=4)
    report = merge_ops.save(merged, tmp_path / "out.safetensors", format=form)
    assert report.largest_error < 2e-3
    pipe = make_pipe()
    pipe.load_lora_weights(tmp_path / "out.safetensors", adapter_name="merged")
    assert_same(deltas_in(pipe, adapter_deltas, "merged"), merged, tolerance=2e-3)


def test_auto_keeps_the_dialect_of_the_first(sd15_files, tmp_path):
    kohya = merge_ops.merge([merge_ops.load(sd15_files[1])])
    assert merge_ops.save(kohya, tmp_path / "a.safetensors").format == "kohya"
    merge_ops.save(kohya, tmp_path / "b.safetensors", format="diffusers")
    diffusers = merge_ops.merge([merge_ops.load(tmp_path / "b.safetensors")])
    assert merge_ops.save(diffusers, tmp_path / "c.safetensors").format == "diffusers"


def test_layers_of_ldm_names_are_written_under_ldm_names(sdxl_shapes, kohya_tensors, write, tmp_path):
    """What SDXL trainers write, and what diffusers maps back itself (test_names)."""
    stem = "lora_unet_output_blocks_2_1_transformer_blocks_0_attn1_to_q"
    lora = merge_ops.load(write(kohya_tensors({stem: (128, 128)})))
    merge_ops.save(merge_ops.merge([lora]), tmp_path / "out.safetensors")
    assert {layer.key for layer in merge_ops.load(tmp_path / "out.safetensors").layers.values()} == {stem}
