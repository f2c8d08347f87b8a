"""A tuned model in ComfyUI's layout and its base in diffusers', and the other way round."""

import pytest
import torch

import merge_ops
from merge_ops import IncompatibleLoraError
from merge_ops.cli import main
from tests.models.checkpoints import WIDTH, flux_blocks

LAYOUTS = ("comfyui", "diffusers")


def blocks(layout, tuned, dtype=torch.float32):
    """Flux blocks; the tuned ones differ in every matrix and bias, by the same numbers in both layouts."""
    tensors = flux_blocks(layout, torch.float32)
    if tuned:
        # the difference of two models that are the same in both layouts is so, too
        tensors = {name: weight + 0.01 * weight.sin() for name, weight in tensors.items()}
    return {name: weight.to(dtype) for name, weight in tensors.items()}


def deltas(lora):
    merged = merge_ops.merge([lora] if not isinstance(lora, merge_ops.Extracted) else list(lora.loras))
    return {name: merged.delta(name) for name in merged.layers}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_may_have_another_layout(write, layout, dtype):
    """The LoRA has the names of the tuned model, and is that of two files in its layout."""
    (other,) = set(LAYOUTS) - {layout}
    tuned = write("tuned.safetensors", blocks(layout, tuned=True))
    base = write("base.safetensors", blocks(layout, tuned=False, dtype=dtype))
    elsewhere = write("other.safetensors", blocks(other, tuned=False, dtype=dtype))
    expected = merge_ops.extract(tuned, base, rank=WIDTH)
    extracted = merge_ops.extract(tuned, elsewhere, rank=WIDTH)
    assert not extracted.found.left_out and extracted.found.layers == expected.found.layers
    wanted, found = deltas(expected), deltas(extracted)
    assert wanted.keys() == found.keys() and len(found) >= 5
    for name, delta in wanted.items():
        assert torch.equal(found[name], delta), name


def test_a_folder_of_diffusers_as_the_base(write, capsys, tmp_path):
    """Through the command line; the report says nothing of weights that are missing."""
    tuned = write("tuned.safetensors", blocks("comfyui", tuned=True))
    base = write("base/diffusion_pytorch_model.safetensors", blocks("diffusers", tuned=False)).parent
    (base / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    assert main(["extract", str(tuned), str(base), "--rank", "4", "-o", str(tmp_path / "x.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "has no such weight" not in said and "left out" not in said
    layers = merge_ops.load(tmp_path / "x.safetensors").layers
    assert any("linear1" in name for name in layers)


def test_what_the_base_lacks_is_left_out_by_name(write):
    """A fused weight of which the base has not all parts."""
    base = blocks("diffusers", tuned=False)
    del base["transformer_blocks.0.attn.to_v.weight"]
    tuned = write("tuned.safetensors", blocks("comfyui", tuned=True))
    extracted = merge_ops.extract(tuned, write("base.safetensors", base), rank=4)
    stem = "diffusion_model.double_blocks.0.img_attn.qkv"
    assert extracted.found.left_out.keys() == {stem, f"{stem}.bias"}
    assert "single_blocks.0.linear1" in " ".join(extracted.layers)


def test_another_architecture_is_refused_as_before(write):
    """Whatever layouts they have."""
    sd3 = {f"joint_blocks.0.x_block.attn.{part}.weight": torch.ones(WIDTH, WIDTH) for part in ("qkv", "proj")}
    base = write("base.safetensors", blocks("diffusers", tuned=False))
    with pytest.raises(IncompatibleLoraError, match="give a model and its own base"):
        merge_ops.extract(write("tuned.safetensors", sd3), base)
