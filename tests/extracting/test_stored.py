"""Every way to store a weight: what is read are the numbers that the model computes with."""

import json

import pytest
import torch

import merge_ops
from merge_ops import LoraFormatError
from merge_ops.formats.model_files import open_whole_model
from tests.extracting.weights import SD1, UNET, random_weights, tuned_from

TO_Q = f"{UNET}.attn1.to_q.weight"
NAME = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def read(path, name=NAME):
    weight = open_whole_model(path).weights[name]
    return weight.open()(0, weight.shape[0]).to(torch.float32)


def scaled(weight, dtype, form):
    """A weight in fp8 with its scale, in each program's spelling, and its numbers."""
    per_row = form == "rows"
    largest = weight.abs().amax(dim=1, keepdim=True) if per_row else weight.abs().max()
    scale = largest / torch.finfo(dtype).max
    stored = (weight / scale).to(dtype)
    stem = TO_Q.removesuffix(".weight")
    tensors = {TO_Q: stored}
    if form == "old":
        tensors |= {"scaled_fp8": torch.zeros(2, dtype=dtype), f"{stem}.scale_weight": scale}
        tensors[f"{stem}.scale_input"] = torch.ones(())
    else:
        mark = list(json.dumps({"format": str(dtype).removeprefix("torch.")}).encode())
        tensors |= {f"{stem}.weight_scale": scale, f"{stem}.comfy_quant": torch.tensor(mark).byte()}
        tensors[f"{stem}.input_scale"] = torch.ones(())
    return tensors, stored.float() * scale


@pytest.mark.parametrize("dtype", [*FLOATS, *FP8], ids=str)
def test_plain_numbers(write, dtype):
    weight = random_weights(SD1)[TO_Q].to(dtype)
    path = write("model.safetensors", {TO_Q: weight})
    torch.testing.assert_close(read(path), weight.float(), rtol=0, atol=0)
    rows = open_whole_model(path).weights[NAME].open()(7, 20)
    torch.testing.assert_close(rows.float(), weight[7:20].float(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", FP8, ids=str)
@pytest.mark.parametrize("form", ["old", "new", "rows"])
def test_fp8_with_a_scale(write, dtype, form):
    tensors, numbers = scaled(random_weights(SD1)[TO_Q], dtype, form)
    path = write("model.safetensors", tensors)
    assert list(open_whole_model(path).weights) == [NAME]
    torch.testing.assert_close(read(path), numbers, rtol=0, atol=0)
    rows = open_whole_model(path).weights[NAME].open()(30, 33)
    torch.testing.assert_close(rows, numbers[30:33], rtol=0, atol=0)


@pytest.mark.parametrize("form", ["old", "new", "rows"])
def test_a_lora_from_scaled_models(write, form):
    """Two models in scaled fp8: the difference is that of their numbers."""
    base = random_weights(SD1)[TO_Q]
    change = torch.outer(torch.linspace(-1, 1, 160), torch.linspace(0, 1, 160)) * 0.1
    tensors, numbers = scaled(base + change, torch.float8_e4m3fn, form)
    other, others = scaled(base, torch.float8_e4m3fn, form)
    paths = write("tuned.safetensors", tensors), write("base.safetensors", other)
    extracted = merge_ops.extract(*paths, energy=1.0)
    torch.testing.assert_close(extracted.delta(NAME), numbers - others, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("tuned", "base"), [(torch.float16, torch.float32), (torch.bfloat16, torch.float16)])
def test_rounding_of_untouched_layers_is_no_difference(write, tuned, base):
    """One model saved in another dtype: only what was trained is in the LoRA."""
    weights = random_weights(SD1)
    trained = tuned_from(weights, only="attn1")
    paths = (
        write("tuned.safetensors", {name: weight.to(tuned) for name, weight in trained.items()}),
        write("base.safetensors", {name: weight.to(base) for name, weight in weights.items()}),
    )
    extracted = merge_ops.extract(*paths, rank=4)
    assert list(extracted.layers) == [NAME]
    assert len(extracted.found.ignored) == len(SD1) - 1
    assert "rounding to the coarser of the two dtypes" in "\n".join(extracted.found.lines())


def test_a_lora_below_the_rounding_is_found(write):
    """Half as large as the rounding of fp8, but in few directions, which rounding is not."""
    base = random_weights(SD1)[TO_Q]
    generator = torch.Generator().manual_seed(1)
    change = torch.outer(*(torch.randn(160, generator=generator) for _ in range(2)))
    change *= 0.012 * base.norm() / change.norm()
    tensors, numbers = scaled(base + change, torch.float8_e4m3fn, "old")
    assert change.norm() < 0.55 * (numbers - base - change).norm()
    paths = write("tuned.safetensors", tensors), write("base.safetensors", {TO_Q: base})
    extracted = merge_ops.extract(*paths, rank=1)
    assert torch.cosine_similarity(extracted.delta(NAME).flatten(), change.flatten(), dim=0) > 0.9
    assert "is rounding of the weights to their dtype" in extracted.outline.warnings[0]


def test_rounding_of_fp8_too(write):
    """Of scaled fp8 the numbers below the smallest normal one are rounded more coarsely; most are above."""
    weights = random_weights(SD1)
    tensors, _ = scaled(weights[TO_Q], torch.float8_e4m3fn, "old")
    paths = write("tuned.safetensors", tensors), write("base.safetensors", {TO_Q: weights[TO_Q]})
    with pytest.raises(merge_ops.MergeError, match=r"hardly differ.*rounding"):
        merge_ops.extract(*paths)


def test_a_small_change_of_one_dtype_is_kept_and_said(write):
    """Nothing is left out that may have been trained: equal dtypes differ only where a number does."""
    base = random_weights(SD1)[TO_Q].bfloat16()
    tuned = base.clone()
    some = base.view(-1)[::7].float()
    signs = torch.randn(some.shape, generator=torch.Generator().manual_seed(2)).sign()
    tuned.view(-1)[::7] += (some * 2**-8 * signs).bfloat16()
    paths = write("tuned.safetensors", {TO_Q: tuned}), write("base.safetensors", {TO_Q: base})
    extracted = merge_ops.extract(*paths, rank=4)
    warnings = "\n".join(extracted.outline.warnings)
    assert list(extracted.layers) == [NAME]
    assert "differ by no more than rounding to their dtype does" in warnings
    assert "of the difference is rounding of the weights to their dtype" in warnings


@pytest.mark.parametrize(
    ("more", "form"),
    [
        ({"x.weight.absmax": torch.ones(3), "x.weight": torch.ones(4, 1).byte()}, "bitsandbytes"),
        ({"x.weight.quant_state.bitsandbytes__nf4": torch.ones(3).byte()}, "bitsandbytes"),
        ({"x.SCB": torch.ones(4), "x.weight": torch.ones(4, 4).to(torch.int8)}, "bitsandbytes"),
        ({"x.qweight": torch.ones(4, 4, dtype=torch.int32), "x.qzeros": torch.ones(1, 4)}, "GPTQ"),
        ({"x.weight": torch.ones(4, 2).byte(), "x.weight_scale_2": torch.ones(())}, "NVFP4"),
        ({"x.weight": torch.ones(4, 4).to(torch.int8), "x.weight_scale": torch.ones(4)}, "I8"),
        ({"x.weight": torch.ones(4, 4).to(FP8[0]), "x.weight_scale_inv": torch.ones(1, 1)}, "row or block"),
    ],
)
def test_packed_weights_are_refused_by_name(write, more, form):
    path = write("packed.safetensors", {**random_weights(SD1), **more})
    with pytest.raises(LoraFormatError, match=f"packed.safetensors: .*{form}.*fp32, fp16, bf16 or fp8"):
        merge_ops.extract(path, path)


def test_the_format_of_a_packed_weight_is_named_as_comfyui_writes_it(write):
    mark = torch.tensor(list(json.dumps({"format": "int8_tensorwise"}).encode())).byte()
    tensors = {"x.weight": torch.ones(4, 4).to(torch.int8), "x.comfy_quant": mark}
    with pytest.raises(LoraFormatError, match=r"x\.weight is packed \(int8_tensorwise\)"):
        open_whole_model(write("packed.safetensors", tensors))


def test_a_scale_for_each_block_is_refused(write):
    tensors, _ = scaled(random_weights(SD1)[TO_Q], torch.float8_e4m3fn, "new")
    tensors[f"{TO_Q.removesuffix('.weight')}.weight_scale"] = torch.ones(160, 5)
    base = write("base.safetensors", {TO_Q: random_weights(SD1)[TO_Q]})
    with pytest.raises(LoraFormatError, match="a scale for each block"):
        merge_ops.extract(write("tuned.safetensors", tensors), base)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF" + bytes(100), "GGUF"),
        (b"PK\x03\x04" + bytes(100), "pickle"),
        (b"<html>not found</html>" + bytes(60), "web page"),
        (b"", "not a safetensors file"),
        (bytes([255] * 80), "cut off or not a safetensors file"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoraFormatError, match=f"model.safetensors: .*{message}"):
        open_whole_model(path)


def test_a_file_that_is_cut_off_or_changes_is_refused(write):
    path = write("model.safetensors", random_weights(SD1))
    model = open_whole_model(path)
    path.write_bytes(path.read_bytes())
    data = path.read_bytes()
    path.write_bytes(data[:-4])
    with pytest.raises(LoraFormatError, match="changed while it was read"):
        model.weights[NAME].open()(0, 3)
    with pytest.raises(LoraFormatError, match=r"needs .* bytes"):
        open_whole_model(path)
