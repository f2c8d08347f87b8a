"""A single file with a merge in its weights: what changes, and what does not."""

import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import merge_ops
from merge_ops.models import fuse
from tests.models.checkpoints import (
    BLOCK,
    CHANGED,
    FLUX_DIFFUSERS,
    FLUX_ORIGINAL,
    KOHYA,
    UNET,
    WIDTH,
    flux_blocks,
    lora_tensors,
    names,
    noise,
    whole_checkpoint,
    write,
)


def header(file):
    raw = file.read_bytes()
    return json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])


def delta_of(merged, ending):
    return merged.delta(next(name for name in merged.layers if name.endswith(ending)))


def test_a_whole_checkpoint(base, lora, tmp_path):
    """Denoiser and both text encoders change, q, k and v of OpenCLIP apart; all else keeps every byte."""
    merged = merge_ops.merge([lora], [0.5])
    seen = []
    out = tmp_path / "out.safetensors"
    report = fuse(base, merged, out, progress=lambda *step: seen.append(step))
    old, new = load_file(base), load_file(out)
    changed = {key for key in old if old[key].numpy().tobytes() != new[key].numpy().tobytes()}
    assert changed == CHANGED == report.fused.keys() and not report.misfits
    for key, ending in (
        (f"{UNET}{BLOCK}.attn1.to_q.weight", "attn1.to_q"),
        (f"{UNET}input_blocks.1.0.in_layers.2.weight", "conv1"),
        (f"{UNET}input_blocks.1.1.proj_in.weight", "proj_in"),
    ):
        wanted = (old[key].float() + delta_of(merged, ending).reshape(old[key].shape)).half()
        assert torch.equal(new[key], wanted), key
    fused = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    rows = slice(WIDTH, 2 * WIDTH)
    wanted = (old[fused][rows].float() + delta_of(merged, "k_proj")).half()
    assert torch.equal(new[fused][rows], wanted)
    assert torch.equal(new[fused][:WIDTH], old[fused][:WIDTH])
    before, after = header(base), header(out)
    assert list(before)[1:] == list(after)[1:]
    assert all(before[key] == after[key] for key in old)
    kept = {key: after["__metadata__"][key] for key in ("modelspec.title", "n")}
    assert kept == before["__metadata__"]
    assert merge_ops.read_recipe(out).weights == [0.5]
    assert after["__metadata__"]["modelspec.merged_from"] == "base, lora"
    assert seen[0][:2] == (0, len(old)) and seen[-1][:2] == (len(old), len(old))
    for line in report.changes:
        delta = new[line.name].double() - old[line.name].double()
        assert line.delta == pytest.approx(float(delta.norm()), rel=1e-2)
        assert 0 < line.rounding < 1e-2 * line.delta


def test_a_dry_run_writes_nothing(base, lora, tmp_path):
    report = fuse(base, merge_ops.merge([lora]), None)
    assert report.fused.keys() == CHANGED and not report.changes and not report.path
    assert names(tmp_path) == ["base.safetensors", "lora.safetensors"]


def test_several_loras_are_added_one_after_the_other(base, tmp_path):
    """In the order of the list, each times its strength and alpha over rank, as loaders do."""
    stem, shape = next(iter(KOHYA.items()))
    loras = [
        merge_ops.load(write(tmp_path / f"{rank}.safetensors", lora_tensors({stem: shape}, rank, alpha=3)))
        for rank in (7, 2, 5)
    ]
    weights = [0.3, -1.7, 0.9]
    base = write(tmp_path / "base32.safetensors", whole_checkpoint(torch.float32))
    report = fuse(base, merge_ops.merge(loras, weights), tmp_path / "out.safetensors")
    key = f"{UNET}{BLOCK}.attn1.to_q.weight"
    wanted = load_file(base)[key]
    for lora, weight in zip(loras, weights, strict=True):
        (layer,) = lora.layers.values()
        wanted = wanted + (weight * layer.scale) * (layer.up @ layer.down)
    assert torch.equal(load_file(tmp_path / "out.safetensors")[key], wanted)
    (line,) = report.changes
    assert line.delta == pytest.approx(float((wanted - load_file(base)[key]).norm()), rel=1e-4)


def test_metadata_that_no_longer_holds(lora, tmp_path):
    """Hashes of other weights are left out and named; a second merge keeps the recipe of the first."""
    metadata = {"modelspec.hash_sha256": "0x1", "sshs_model_hash": "2", "note": 'a "quoted" ü\u2028line'}
    base = write(tmp_path / "base.safetensors", whole_checkpoint(), metadata)
    report = fuse(base, merge_ops.merge([lora], [0.5]), tmp_path / "one.safetensors")
    assert report.left_out == ("metadata modelspec.hash_sha256", "metadata sshs_model_hash")
    fuse(tmp_path / "one.safetensors", merge_ops.merge([lora], [-0.5]), tmp_path / "two.safetensors")
    with safe_open(tmp_path / "two.safetensors", "pt") as file:
        found = file.metadata()
    assert found["note"] == metadata["note"] and "sshs_model_hash" not in found
    assert json.loads(found["lora_alloy"])["sources"][0]["weight"] == -0.5
    assert json.loads(found["lora_alloy_base"])["sources"][0]["weight"] == 0.5


@pytest.mark.parametrize("stems", [FLUX_ORIGINAL, FLUX_DIFFUSERS])
def test_both_layouts_hold_the_same_numbers(stems, tmp_path):
    """A LoRA in either structure, on the same model in ComfyUI's layout and in that of diffusers."""
    tensors = lora_tensors(stems)
    if stems is FLUX_ORIGINAL:
        tensors["diffusion_model.double_blocks.0.img_attn.qkv.diff_b"] = noise(3 * WIDTH, seed=5)
        tensors["diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff"] = noise(4, seed=6)
    merged = merge_ops.merge([merge_ops.load(write(tmp_path / "lora.safetensors", tensors))])
    found = {}
    for layout in ("comfyui", "diffusers"):
        base = write(tmp_path / f"{layout}.safetensors", flux_blocks(layout))
        report = fuse(base, merged, tmp_path / f"{layout}-out.safetensors")
        assert not report.misfits
        found[layout] = load_file(tmp_path / f"{layout}-out.safetensors")
    own, theirs = found["comfyui"], found["diffusers"]
    block, single = "transformer_blocks.0.attn.", "single_transformer_blocks.0."

    def joined(ends, prefix, last="weight"):
        return torch.cat([theirs[f"{prefix}{end}.{last}"] for end in ends])

    pairs = [
        (own["double_blocks.0.img_attn.qkv.weight"], joined(("to_q", "to_k", "to_v"), block)),
        (own["double_blocks.0.img_attn.qkv.bias"], joined(("to_q", "to_k", "to_v"), block, "bias")),
        (
            own["single_blocks.0.linear1.weight"],
            joined(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), single),
        ),
        (own["double_blocks.0.img_attn.norm.query_norm.scale"], theirs[f"{block}norm_q.weight"]),
        (
            own["final_layer.adaLN_modulation.1.weight"],
            torch.cat(theirs["norm_out.linear.weight"].chunk(2)[::-1]),
        ),
    ]
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)
    assert not torch.equal(
        own["single_blocks.0.linear1.weight"], flux_blocks("comfyui")["single_blocks.0.linear1.weight"]
    )


def test_a_fused_layer_on_parts(tmp_path):
    """``to_qkv`` of a trainer on a file that has q, k and v."""
    stems = {"transformer.transformer_blocks.0.attn.to_qkv": (3 * WIDTH, WIDTH)}
    lora = merge_ops.load(write(tmp_path / "lora.safetensors", lora_tensors(stems)))
    for how in ({}, {"base": tmp_path / "base.safetensors"}):
        base = write(tmp_path / "base.safetensors", flux_blocks("diffusers"))
        out = tmp_path / f"out{len(how)}.safetensors"
        assert len(fuse(base, merge_ops.merge([lora], **how), out).fused) == 3
        old, new = load_file(base), load_file(out)
        (layer,) = lora.layers.values()
        rows = layer.delta().split(WIDTH)
        for end, delta in zip(("to_q", "to_k", "to_v"), rows, strict=True):
            key = f"transformer_blocks.0.attn.{end}.weight"
            assert torch.allclose(new[key].float(), old[key].float() + delta, atol=1e-3)


def test_weights_that_are_set_and_dora(tmp_path):
    """A set weight has its own bits; a DoRA is evaluated on the weight of the checkpoint."""
    base = write(tmp_path / "base.safetensors", flux_blocks("comfyui", torch.float32))
    qkv = "diffusion_model.double_blocks.0.img_attn.qkv"
    value, scale = noise(3 * WIDTH, WIDTH, seed=8, dtype=torch.float32), torch.rand(WIDTH, 1) + 1
    tensors = lora_tensors({"lora_transformer_transformer_blocks_0_attn_to_k": (WIDTH, WIDTH)})
    tensors = {
        key.replace("lora_transformer_", "transformer.").replace("_blocks_0_attn_", "_blocks.0.attn."): t
        for key, t in tensors.items()
    }
    tensors["transformer.transformer_blocks.0.attn.to_k.dora_scale"] = scale
    dora = merge_ops.load(write(tmp_path / "dora.safetensors", tensors))
    merged = merge_ops.merge([dora], base=base, reader="comfyui")
    fuse(base, merged, tmp_path / "dora-out.safetensors")
    weight = load_file(base)["double_blocks.0.img_attn.qkv.weight"]
    rows = weight[WIDTH : 2 * WIDTH]
    (adapter,) = dora.base_dependent.values()
    found = load_file(tmp_path / "dora-out.safetensors")["double_blocks.0.img_attn.qkv.weight"]
    assert torch.allclose(found[WIDTH : 2 * WIDTH], rows + adapter.change(rows, "comfyui"), atol=1e-6)
    assert torch.equal(found[:WIDTH], weight[:WIDTH])
    setting = merge_ops.load(write(tmp_path / "set.safetensors", {f"{qkv}.set_weight": value}))
    fuse(base, merge_ops.merge([setting], [0.2]), tmp_path / "set-out.safetensors")
    assert torch.equal(
        load_file(tmp_path / "set-out.safetensors")["double_blocks.0.img_attn.qkv.weight"], value
    )
