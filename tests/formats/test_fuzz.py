"""Whatever the bytes are, loading ends in a Lora or in a MergeError."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import merge_ops
from merge_ops import Lora, MergeError

RELAXED = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
STEM = "lora_unet_mid_block_attentions_0_proj_in"
KOHYA = save(
    {
        f"{STEM}.lora_up.weight": torch.ones(3, 2, 1, 1),
        f"{STEM}.lora_down.weight": torch.ones(2, 3, 1, 1),
        f"{STEM}.lora_mid.weight": torch.ones(2, 2, 3, 3, dtype=torch.float16),
        f"{STEM}.alpha": torch.tensor(1.0, dtype=torch.bfloat16),
    },
    {"ss_v2": "False"},
)
DIFFUSERS = save(
    {
        "unet.conv_in.lora_B.weight": torch.ones(3, 2, dtype=torch.float16),
        "unet.conv_in.lora_A.weight": torch.ones(2, 3, dtype=torch.float16),
    },
    {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": {"conv_in": 1}})},
)
PTI = save({"unet:1:up": torch.ones(3, 2), "unet:1:down": torch.ones(2, 3)}, {"unet": '["GEGLU"]'})
CONFIG = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"a": 1}}).encode()


def survive(path: Path):
    try:
        lora = merge_ops.load(path)
    except MergeError as error:
        assert str(error)
        return
    assert isinstance(lora, Lora)
    assert lora.layers
    for layer in lora.layers.values():
        assert layer.delta().shape == layer.weight_shape


@RELAXED
@given(st.binary(max_size=200))
def test_random_bytes(tmp_path, raw):
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    survive(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(
            ["F32", "F16", "BF16", "F64", "I64", "BOOL", "C64", "F8_E4M3", "F4", "U8", "?"]
        ),
        "shape": st.lists(st.integers(0, 3), max_size=4),
        "data_offsets": st.just([0, 16]) | st.lists(st.integers(-1, 40), max_size=3),
    }
)
suffixes = st.sampled_from(
    [".lora_up.weight", ".lora_down.weight", ".alpha", ".lora_mid.weight", ".hada_w1_a", ""]
)


@RELAXED
@given(
    st.dictionaries(suffixes, entries | json_values, max_size=4),
    st.none() | json_values | st.dictionaries(st.sampled_from(["lora_adapter_metadata", "unet"]), st.text()),
    st.binary(min_size=16, max_size=40),
)
def test_headers_with_the_right_keys_and_wrong_contents(tmp_path, tensors, metadata, data):
    header = {f"{STEM}{suffix}": entry for suffix, entry in tensors.items()}
    raw = json.dumps(header | {"__metadata__": metadata}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    survive(path)


BITS = {"F32": 32, "F64": 64, "I64": 64, "C64": 64, "F16": 16, "BF16": 16, "F4": 4}
DTYPES = [*BITS, "BOOL", "U8", "F8_E4M3", "F8_E8M0"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", DTYPES)
@pytest.mark.parametrize("byte", [0x00, 0x3C, 0x7F, 0xFF])
def test_every_dtype(tmp_path, dtype, alpha, byte):
    """Valid containers, whose numbers may mean nothing."""
    header, offset = {}, 0
    scalar = [2] if alpha == "F4" else [1]  # two in a byte
    for name, kind, shape in (("lora_up.weight", dtype, [2, 2]), ("lora_down.weight", dtype, [2, 2]),
                              ("alpha", alpha, scalar)):  # fmt: skip
        size = BITS.get(kind, 8) * (4 if len(shape) == 2 else shape[0]) // 8
        header[f"{STEM}.{name}"] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes([byte]) * offset)
    survive(path)


@pytest.mark.parametrize("valid", [KOHYA, DIFFUSERS, PTI], ids=["kohya", "diffusers", "pti"])
@RELAXED
@given(changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4))
def test_corrupted_files(tmp_path, valid, changes):
    raw = bytearray(valid)
    for place, value in changes:
        raw[place % len(raw)] = value
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    survive(path)


@RELAXED
@given(
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=3),
    more=st.dictionaries(
        st.sampled_from(
            ["peft_type", "lora_alpha", "alpha_pattern", "auto_mapping", "use_rslora", "fan_in_fan_out"]
        ),
        json_values,
    ),
)
def test_corrupted_configurations(tmp_path, changes, more):
    folder = tmp_path / "adapter"
    folder.mkdir(exist_ok=True)
    stem = "base_model.model.a.lora"
    tensors = {f"{stem}_A.weight": torch.ones(2, 3), f"{stem}_B.weight": torch.ones(3, 2)}
    (folder / "adapter_model.safetensors").write_bytes(save(tensors))
    raw = bytearray(json.dumps(json.loads(CONFIG) | more).encode())
    for place, value in changes:
        raw[place % len(raw)] = value
    (folder / "adapter_config.json").write_bytes(raw)
    survive(folder)
