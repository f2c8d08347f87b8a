"""Fusing into fp8, with a scale and without; formats that nothing can be added to are refused by name."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file

import merge_ops
from merge_ops import IncompatibleLoraError, LoraFormatError
from merge_ops.models import fuse
from tests.models.checkpoints import WIDTH, flux_blocks, lora_tensors, names, write


@pytest.mark.parametrize("place", ["before", "after"])
def test_scaled_fp8_gets_a_fresh_scale(place, tmp_path):
    """The largest entry is at the end of the range again; the scale stands before its weight or after."""
    dtype, stem = torch.float8_e4m3fn, "double_blocks.0.img_attn.qkv"
    tensors = flux_blocks("comfyui")
    weight = tensors[f"{stem}.weight"].float()
    scale = weight.abs().amax() / 448
    name = f"{stem}.{'scale_weight' if place == 'before' else 'weight_scale'}"
    # safetensors puts wider numbers first
    scale = scale if place == "before" else scale.reshape(1)
    tensors = {
        f"{stem}.weight": (weight / scale).to(dtype),
        name: scale.float(),
        "scaled_fp8": torch.zeros(2, dtype=dtype),
    }
    if place == "after":
        tensors = {name: tensors[name].to(torch.float32), **tensors}
    base = tmp_path / "base.safetensors"
    base.write_bytes(
        in_order(tensors, [name, f"{stem}.weight"] if place == "before" else [f"{stem}.weight", name])
    )
    stems = {f"diffusion_model.{stem}": (3 * WIDTH, WIDTH)}
    merged = merge_ops.merge(
        [merge_ops.load(write(tmp_path / "lora.safetensors", lora_tensors(stems)))], [3.0]
    )
    report = fuse(base, merged, tmp_path / "out.safetensors")
    old, new = load_file(base), load_file(tmp_path / "out.safetensors")
    exact = old[f"{stem}.weight"].float() * old[name] + merged.delta(next(iter(merged.layers)))
    fresh = new[name]
    assert float(fresh) == pytest.approx(float(exact.abs().amax() / 448)) and float(fresh) != float(old[name])
    found = new[f"{stem}.weight"].float() * fresh
    assert float(new[f"{stem}.weight"].float().abs().amax()) == 448
    error = float((found - exact).norm())
    (line,) = report.changes
    assert line.rounding == pytest.approx(error, rel=1e-3) and error < 0.06 * float(exact.norm())
    assert new["scaled_fp8"].view(torch.uint8).equal(old["scaled_fp8"].view(torch.uint8))


def in_order(tensors, first):
    """A safetensors file with its data in this order; the library that writes them sorts by dtype."""
    listed = {name: tensors[name] for name in (*first, *(key for key in tensors if key not in first))}
    kinds = {torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}
    entries, data = {}, b""
    for name, tensor in listed.items():
        raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        entries[name] = {
            "dtype": kinds[tensor.dtype], "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }  # fmt: skip
        data += raw
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_keeps_small_deltas_on_average(dtype, tmp_path):
    """A delta far below half a step, which rounding to nearest would lose altogether."""
    weight = torch.ones(400, 400).to(dtype)
    base = write(tmp_path / "base.safetensors", {"blocks.0.self_attn.q.weight": weight})
    delta = torch.full((400, 400), 0.01)
    tensors = {"diffusion_model.blocks.0.self_attn.q.diff": delta}
    merged = merge_ops.merge([merge_ops.load(write(tmp_path / "lora.safetensors", tensors))])
    fuse(base, merged, tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")["blocks.0.self_attn.q.weight"]
    assert found.dtype == dtype and torch.equal((1 + delta).to(dtype).float(), weight.float())
    assert float(found.float().mean()) == pytest.approx(1.01, abs=2e-3)


def stated(form):
    """What a module says of its format in ComfyUI's files."""
    return torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)


QUANTISED = {
    "bitsandbytes NF4": {"{}.weight": torch.zeros(96, 1, dtype=torch.uint8),
                         "{}.weight.quant_state.bitsandbytes__nf4": torch.zeros(4, dtype=torch.uint8)},
    "bitsandbytes int8": {"{}.weight": torch.zeros(24, 8, dtype=torch.int8), "{}.SCB": torch.ones(24)},
    "NVFP4": {"{}.weight": torch.zeros(24, 4, dtype=torch.uint8), "{}.weight_scale_2": torch.ones(())},
    "int8_tensorwise": {"{}.weight": torch.zeros(24, 8, dtype=torch.int8), "{}.weight_scale": torch.ones(()),
                        "{}.comfy_quant": stated("int8_tensorwise")},
    "mxfp8": {"{}.weight": torch.zeros(24, 8, dtype=torch.float8_e4m3fn),
              "{}.weight_scale": torch.ones(24, dtype=torch.uint8),
              "{}.comfy_quant": stated("mxfp8")},
    "a scale for each row or block": {"{}.weight": torch.zeros(24, 8, dtype=torch.float8_e4m3fn),
                                      "{}.weight_scale": torch.ones(24, 1)},
    "fp8 with a scale for each row or block": {"{}.weight": torch.zeros(24, 8, dtype=torch.float8_e4m3fn),
                                               "{}.weight_scale_inv": torch.ones(1, 1)},
    "nunchaku": {"{}.qweight": torch.zeros(24, 4, dtype=torch.int8), "{}.wscales": torch.ones(4, 24)},
    "GPTQ or AWQ": {"{}.qweight": torch.zeros(4, 24, dtype=torch.int32),
                    "{}.qzeros": torch.zeros(1, 3, dtype=torch.int32)},
}  # fmt: skip


@pytest.mark.parametrize("form", QUANTISED)
def test_quantised_formats_are_refused_by_name(form, tmp_path):
    """Where the LoRA changes such a weight; one that nothing is added to may be in the file."""
    stem = "double_blocks.0.img_attn.qkv"
    rest = {key: tensor for key, tensor in flux_blocks("comfyui").items() if not key.startswith(stem)}
    packed = {name.format(stem): tensor for name, tensor in QUANTISED[form].items()}
    base = write(tmp_path / "base.safetensors", rest | packed)
    stems = {f"diffusion_model.{stem}": (24, 8), "diffusion_model.single_blocks.0.linear1": (56, 8)}
    merged = merge_ops.merge([merge_ops.load(write(tmp_path / "lora.safetensors", lora_tensors(stems)))])
    with pytest.raises(IncompatibleLoraError, match="quantised") as caught:
        fuse(base, merged, tmp_path / "out.safetensors")
    assert form in str(caught.value) and "original weights" in str(caught.value)
    if form not in ("nunchaku", "GPTQ or AWQ"):
        other = merge_ops.merge(
            [
                merge_ops.load(
                    write(tmp_path / "other.safetensors", lora_tensors(dict([list(stems.items())[1]])))
                )
            ]
        )
        assert len(fuse(base, other, tmp_path / "out.safetensors").changes) == 1
    else:
        assert names(tmp_path) == ["base.safetensors", "lora.safetensors"]


def test_metadata_of_quantised_layers(tmp_path):
    """The newest way to state a format: fp8 is taken, anything else is refused by its name."""
    stem, dtype = "double_blocks.0.img_attn.qkv", torch.float8_e4m3fn
    tensors = flux_blocks("comfyui") | {
        f"{stem}.weight": torch.ones(24, 8).to(dtype),
        f"{stem}.weight_scale": torch.ones(()),
    }
    lora = merge_ops.load(
        write(tmp_path / "lora.safetensors", lora_tensors({f"diffusion_model.{stem}": (24, 8)}))
    )
    for form, says in (("float8_e4m3fn", None), ("nvfp4", "nvfp4"), ("float8_e5m2", "float8_e5m2")):
        stated = json.dumps({"layers": {stem: {"format": form}}})
        base = write(tmp_path / "base.safetensors", tensors, {"_quantization_metadata": stated})
        if says is None:
            assert fuse(base, merge_ops.merge([lora]), tmp_path / "out.safetensors").changes
            continue
        with pytest.raises(IncompatibleLoraError, match=says):
            fuse(base, merge_ops.merge([lora]), tmp_path / "no.safetensors")
    base = write(tmp_path / "base.safetensors", tensors, {"_quantization_metadata": "{"})
    with pytest.raises(LoraFormatError, match="cannot be read"):
        fuse(base, merge_ops.merge([lora]), tmp_path / "no.safetensors")
