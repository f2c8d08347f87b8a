"""A diffusers folder with a merge in its weights, against diffusers' own ``fuse_lora``."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file

import merge_ops
from merge_ops import LoraFormatError, ParameterError
from merge_ops.models import fuse
from tests.models.checkpoints import names
from tests.models.test_diffusers import draw, weights_of, write_lora

KINDS = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


@pytest.fixture(params=KINDS)
def pipe(request):
    return request.getfixturevalue(request.param)


def opened(pipe, folder):
    loaded = type(pipe).from_pretrained(folder, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_the_folder_is_what_diffusers_fuses(pipe, tmp_path):
    """The same weights in all parts, and the same picture; other files are copied byte for byte."""
    base = tmp_path / "base"
    pipe.save_pretrained(base)
    pipe.unet.save_pretrained(base / "unet", max_shard_size="200KB")
    (base / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert len(list((base / "unet").glob("*.safetensors"))) > 2
    (base / "v1-5-pruned.safetensors").write_bytes(b"a checkpoint beside the folders")
    (base / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    (base / ".cache").mkdir()
    (base / ".cache" / "lock").write_bytes(b"")
    shutil.move(base / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "vae.safetensors")
    torch.save(load_file(tmp_path / "vae.safetensors"), base / "vae" / "diffusion_pytorch_model.bin")
    files = [write_lora(pipe, tmp_path, name, rank, 3, rank) for name, rank in (("a", 4), ("b", 2))]
    merged = merge_ops.merge([merge_ops.load(file) for file in files], [0.8, -0.5])
    report = fuse(base, merged, tmp_path / "out")
    assert not report.misfits and len(report.fused) == len(merged.layers)
    assert set(report.left_out) == {
        "v1-5-pruned.safetensors", ".cache/lock", "unet/diffusion_pytorch_model.bin",
    }  # fmt: skip
    for file in base.rglob("*.json"):
        assert (tmp_path / "out" / file.relative_to(base)).read_bytes() == file.read_bytes()
    theirs = opened(pipe, base)
    for name, file in zip("ab", files, strict=True):
        theirs.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    theirs.set_adapters(["a", "b"], [0.8, -0.5])
    theirs.fuse_lora(
        components=[part for part in ("unet", "text_encoder", "text_encoder_2") if hasattr(theirs, part)]
    )
    theirs.unload_lora_weights()
    ours = opened(pipe, tmp_path / "out")
    found, wanted, before = weights_of(ours), weights_of(theirs), weights_of(opened(pipe, base))
    assert found.keys() == wanted.keys()
    for key, weight in wanted.items():
        assert torch.allclose(found[key], weight, atol=1e-5), key
    changed = {key for key, weight in before.items() if not torch.equal(found[key], weight)}
    assert len(changed) == len(merged.layers)
    assert torch.allclose(draw(ours), draw(theirs), atol=1e-3)
    assert merge_ops.read_recipe(tmp_path / "out" / "lora_alloy.json").weights == [0.8, -0.5]


def test_every_variant_is_fused(sd15, tmp_path):
    """``.fp16`` beside the original, each in its dtype."""
    sd15.save_pretrained(tmp_path / "base")
    sd15.to(torch.float16).save_pretrained(tmp_path / "base", variant="fp16")
    file = write_lora(sd15.to(torch.float32), tmp_path, "a", 4, 4, 1)
    merged = merge_ops.merge([merge_ops.load(file)])
    report = fuse(tmp_path / "base", merged, tmp_path / "out")
    assert len(report.changes) == 2 * len(report.fused) == 2 * len(merged.layers)
    plain, half = (
        load_file(tmp_path / "out" / "unet" / f"diffusion_pytorch_model{variant}.safetensors")
        for variant in ("", ".fp16")
    )
    assert all(half[key].dtype == torch.float16 for key in plain)
    key = "mid_block.attentions.0.proj_in.weight"
    base = load_file(tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    assert not torch.equal(plain[key], base[key])
    assert torch.allclose(half[key].float(), plain[key], atol=2e-3)


def test_the_folder_of_a_denoiser(sd15, tmp_path):
    """By itself, as ``save_pretrained`` of the model writes it."""
    sd15.unet.save_pretrained(tmp_path / "unet")
    before = {key: weight.clone() for key, weight in sd15.unet.state_dict().items()}
    file = write_lora(sd15, tmp_path, "a", 4, 4, 1)
    merged = merge_ops.merge([merge_ops.load(file)])
    report = fuse(tmp_path / "unet", merged, tmp_path / "out")
    assert all("which has no text encoder" in why for why in report.misfits.values()) and report.misfits
    found = UNet2DConditionModel.from_pretrained(tmp_path / "out").state_dict()
    for name in (name for name in merged.layers if name.startswith("unet.")):
        key = f"{name.removeprefix('unet.')}.weight"
        wanted = before[key] + merged.delta(name).reshape(found[key].shape)
        assert torch.allclose(found[key], wanted, atol=1e-5)


def test_folders_that_are_refused(sd15, tmp_path):
    """Pickled weights only, a missing shard, a name that only a file may have."""
    base = tmp_path / "base"
    sd15.save_pretrained(base)
    file = write_lora(sd15, tmp_path, "a", 4, 4, 1)
    merged = merge_ops.merge([merge_ops.load(file)])
    with pytest.raises(ParameterError, match="is a folder"):
        fuse(base, merged, tmp_path / "out.safetensors")
    index = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    listed = base / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    listed.write_text(json.dumps(index))
    with pytest.raises(LoraFormatError, match="which its index lists"):
        fuse(base, merged, tmp_path / "out")
    listed.unlink()
    for weights in base.rglob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(LoraFormatError, match="file in unet or text_encoder"):
        fuse(base, merged, tmp_path / "out")
    assert {"base", "a.safetensors"} <= set(names(tmp_path)) and "out" not in names(tmp_path)
