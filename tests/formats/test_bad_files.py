"""Files that cannot be read as a LoRA: a LoraFormatError names the file and says what to do."""

import io
import json
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from merge_ops import IncompatibleLoraError, LoraFormatError

STEM = "lora_unet_mid_block_attentions_0_proj_in"
GOOD = {
    f"{STEM}.lora_up.weight": torch.ones(6, 2),
    f"{STEM}.lora_down.weight": torch.ones(2, 5),
    f"{STEM}.alpha": torch.tensor(1.0),
}


def refuse(path, *messages):
    with pytest.raises(LoraFormatError) as caught:
        merge_ops.load(path)
    assert str(caught.value).startswith(f"{path.name}: ") or "there is no file" in str(caught.value)
    assert str(caught.value).count(path.name) == 1
    for message in messages:
        assert message in str(caught.value)


def container(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def pickled():
    buffer = io.BytesIO()
    torch.save(GOOD, buffer)
    return buffer.getvalue()


def valid_bytes(tmp_path):
    save_file(GOOD, tmp_path / "good")
    return (tmp_path / "good").read_bytes()


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".pth", ".PT"])
def test_pickles_by_suffix(suffix, tmp_path):
    path = tmp_path / f"lora{suffix}"
    path.write_bytes(pickled())
    refuse(path, "pickle", "convert it to .safetensors")


@pytest.mark.parametrize("protocol", [None, 2, 3, 4, 5])
def test_pickles_by_content(protocol, tmp_path):
    path = tmp_path / "lora.safetensors"
    if protocol is None:
        assert zipfile.is_zipfile(io.BytesIO(pickled()))
        path.write_bytes(pickled())
    else:
        torch.save(GOOD, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    refuse(path, "pickle", "convert it to .safetensors")


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 15392])
def test_header_lengths_that_look_like_something_else(length, tmp_path):
    """Their first bytes are those of a pickle of protocol 2 to 5, and a space before ``<``."""
    save_file(GOOD, tmp_path / "x.safetensors", {"note": ""})
    missing = length - struct.unpack("<Q", (tmp_path / "x.safetensors").read_bytes()[:8])[0]
    save_file(GOOD, tmp_path / "x.safetensors", {"note": "x" * (missing - missing % 8)})
    raw = (tmp_path / "x.safetensors").read_bytes()
    assert struct.unpack("<Q", raw[:8])[0] == length
    assert len(merge_ops.load(tmp_path / "x.safetensors").layers) == 1


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (b"", ["only 0 bytes", "download it again"]),
        (b"{}", ["only 2 bytes", "download it again"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", ["Git-LFS pointer", "git lfs pull"]),
        (b"<!DOCTYPE html><html>not found</html>", ["web page", "download it again"]),
        (b"\n  <html></html>", ["web page"]),
        (b"hello, I am a text file", ["not a safetensors file", "download it again"]),
        (container({}, length=2**63), ["header needs", "download it again"]),
        (container({}, length=101 * 2**20), ["header needs"]),
        (container(b"not json"), ["header cannot be read"]),
        (container([1, 2]), ["header cannot be read"]),
        (container({"__metadata__": [1], "a": {}}), ["header cannot be read"]),
        (container({"a": {"dtype": "F32", "shape": [1]}}), ["header cannot be read"]),
        (container({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}), ["not a valid"]),
        (container({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, b"1234"), ["not a valid"]),
        (container({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, b"1234"), ["not a valid"]),
        (container({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"), ["not a valid"]),
        (container({"a": {"dtype": "U8", "shape": [2**60], "data_offsets": [0, 2**60]}}), ["is cut off"]),
        (container({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, float("nan")]}}, b"12"), ["nan"]),
        (container(b"[" * 100_000), ["header cannot be read"]),
        (container({}), ["no LoRA", "lora_down.weight"]),
    ],
    ids="""empty two_bytes lfs html html_after_space text endless_header header_too_long no_json list
    metadata_list no_offsets negative_offsets short_data unknown_dtype negative_shape huge_offset nan_offset
    deep no_tensors""".split(),
)  # fmt: skip
def test_content(content, messages, tmp_path):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(content)
    refuse(path, *messages)


def test_truncated_and_trailing_bytes(tmp_path):
    raw = valid_bytes(tmp_path)
    path = tmp_path / "lora.safetensors"
    path.write_bytes(raw[:-3])
    refuse(path, "is cut off", f"needs {len(raw)} bytes", f"has {len(raw) - 3}", "download it again")
    path.write_bytes(raw + b"x")
    refuse(path, "extra bytes after its end")
    path.write_bytes(raw[:30])
    refuse(path, "cut off")


def test_missing_file(tmp_path):
    refuse(tmp_path / "nowhere.safetensors", "there is no file", "check the path")


def test_no_usable_key_lists_some(write):
    path = write({"model.weight": torch.ones(2), "model.bias": torch.ones(2)})
    refuse(path, "'model.bias', 'model.weight'", "lora_down.weight", "lora_A.weight")
    refuse(write({f"{STEM}.alpha": torch.tensor(1.0)}), "proj_in", "an alpha without the factors")


OTHERS = {
    "OFT of an early trainer": [".oft_diag"],
    "T-LoRA": [".q_layer.weight", ".p_layer.weight", ".lambda_layer"],
    "the magnitudes of a DoRA without the factors they belong to": [".dora_scale"],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_alone_are_refused_and_beside_layers_listed(kind, write):
    others = {f"lora_unet_conv_in{suffix}": torch.ones(2, 2) for suffix in OTHERS[kind]}
    refuse(write(others), kind)
    lora = merge_ops.load(write(GOOD | others | {"stray": torch.ones(1)}))
    assert list(lora.layers) == ["unet.mid_block.attentions.0.proj_in"]
    assert kind in lora.unmerged["unet.conv_in"]
    assert lora.unmerged["stray"] == "unrecognised key"
    skipped = [row for row in merge_ops.merge([lora]).report.layers if row.status == "skipped"]
    assert {row.name for row in skipped} == {"unet.conv_in", "stray"}


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"a1.weight": (5, 2), "a2.weight": (2, 5), "b1.weight": (6, 2)}, "no b2"),
        ({"a1.weight": (5,), "a2.weight": (2, 5), "b1.weight": (6, 2), "b2.weight": (2, 5)}, "not a matrix"),
        ({"oft_blocks": (3, 2)}, "not square blocks"),
        ({"oft_blocks": (3, 2, 4)}, "not square blocks"),
        ({"rescale": (3,)}, "no oft_blocks"),
        ({"diff_b": (3, 2)}, "not a vector"),
        ({"diff_b": (3,), "b_norm": (3,)}, "changes its bias twice"),
        ({"lora_up.weight": (6, 2), "lora_down.weight": (2, 5), "dora_scale": (6, 5)}, "not one axis"),
        ({"lora_up.weight": (6, 2), "lora_down.weight": (2, 5), "oft_blocks": (3, 2, 2)}, "two kinds"),
        ({"oft_blocks": (3, 2, 2), "dora_scale": (6, 1)}, "the magnitude of an adapter beside OFT"),
        ({"diff": (6, 5), "reshape_weight": (2,)}, "the reshape of an adapter beside full difference"),
        ({"diff_b": (6,), "dora_scale": (6, 1)}, "the magnitude of an adapter beside a bias"),
        ({"diff": (6,), "w_norm": (6,)}, "both diff and w_norm"),
        ({"boft_R": (1, 3, 2, 2)}, "no boft_s"),
        ({"oft_R.weight": (3, 4)}, "has the shape (3, 4)"),
    ],
)
def test_other_kinds_that_make_no_sense(tensors, says, write):
    refuse(write({f"{STEM}.{key}": torch.ones(shape) for key, shape in tensors.items()}), STEM, says)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_name_the_tensor(dtype, value, write):
    up = torch.ones(6, 2, dtype=dtype)
    up[3, 1] = value
    refuse(
        write(GOOD | {f"{STEM}.lora_up.weight": up}),
        f"{STEM}.lora_up.weight",
        "NaN or infinity",
        "another copy",
    )


def test_the_largest_finite_numbers_are_not_infinity(write):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        up = torch.full((6, 2), torch.finfo(dtype).max, dtype=dtype)
        merge_ops.load(write(GOOD | {f"{STEM}.lora_up.weight": -up}))


@pytest.mark.parametrize(
    ("changed", "messages"),
    [
        ({"lora_up.weight": None}, ["down half", "not the up half", "incomplete"]),
        ({"lora_down.weight": None}, ["up half", "not the down half"]),
        ({"lora_up.weight": torch.ones(6, 3)}, ["do not fit each other", "up (6, 3), down (2, 5)"]),
        ({"lora_up.weight": torch.ones(6)}, ["are not matrices", "(6,)"]),
        ({"lora_down.weight": torch.ones(0, 5)}, ["do not fit"]),
        ({"lora_down.weight": torch.ones(2, 0), "lora_up.weight": torch.ones(0, 2)}, ["do not fit"]),
        ({"lora_up.weight": torch.ones(6, 2, 3, 3)}, ["do not fit"]),
        ({"lora_mid.weight": torch.ones(3, 2, 3, 3)}, ["do not fit"]),
        ({"lora_up.weight": torch.ones(6, 2, dtype=torch.int8)}, ["torch.int8", "quantised"]),
        ({"lora_down.weight": torch.ones(2, 5, dtype=torch.uint8)}, ["torch.uint8", "quantised"]),
        ({"alpha": torch.ones(2)}, ["alpha", "2 values instead of one"]),
        ({"alpha": torch.tensor(1j)}, ["alpha", "complex"]),
    ],
)
def test_layers_that_make_no_sense(changed, messages, write):
    tensors = GOOD | {f"{STEM}.{key}": tensor for key, tensor in changed.items()}
    refuse(write({key: t for key, t in tensors.items() if t is not None}), STEM, *messages)


@pytest.mark.parametrize(
    "other",
    ["unet.mid_block.attentions.0.proj_in.lora_{}.weight", "lora_unet_middle_block_1_proj_in.lora_{}.weight"],
)
def test_one_layer_in_two_spellings(other, write):
    twin = {other.format("B" if "." in other[:5] else "up"): torch.ones(6, 2)}
    twin |= {other.format("A" if "." in other[:5] else "down"): torch.ones(2, 5)}
    refuse(write(GOOD | twin), "one layer in two spellings", "keep one of them")


def test_one_tensor_in_two_spellings(write):
    refuse(
        write(GOOD | {f"{STEM}.lora_A.weight": torch.zeros(2, 5)}), STEM, "two spellings", "keep one of them"
    )


def test_shapes_of_two_base_models_are_not_merged(write, kohya_tensors):
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    a = merge_ops.load(write(kohya_tensors({stem: (1280, 768)}), name="sd1.safetensors"))
    b = merge_ops.load(write(kohya_tensors({stem: (1280, 1024)}), name="sd2.safetensors"))
    with pytest.raises(
        IncompatibleLoraError, match=r"attn2.to_k.*\(1280, 768\) in sd1.*\(1280, 1024\) in sd2"
    ):
        merge_ops.merge([a, b])
