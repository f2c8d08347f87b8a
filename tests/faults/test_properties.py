"""Whatever the text, the keys, the shapes and the alphas are: a result, or a MergeError."""

import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load

from merge_ops import MergeError
from merge_ops.formats import from_tensors
from merge_ops.formats.container import read_container
from merge_ops.formats.peft_config import check_scales, scale_from_config
from merge_ops.merging import merge
from merge_ops.names.spelling import canonical_name, kohya_name
from tests.nodes.pack import pack_module

MANY = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
lora_text = pack_module("nodes.values.lora_text")
pack_errors = pack_module("merge_ops.errors")

pieces = st.sampled_from(
    """lora_unet_ lora_te_ lora_te1_ lora_te2_ lora_transformer_ lycoris_ unet. text_encoder. text_encoder_2.
    transformer. diffusion_model. model.diffusion_model. base_model.model. down_blocks_0_ input_blocks_4_1_
    output_blocks.2.1. middle_block_1_ attentions.1. transformer_blocks.0. attn1_to_q attn2.to_out.0
    ff_net_0_proj processor. to_k_lora text_model. encoder.layers.3. self_attn.q_proj 0 . _ conv
    time_embed_0""".split()
)
# names with control characters are refused when the header is read
words = st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), max_size=20)
stems = st.lists(pieces | words, max_size=8).map("".join) | words


@MANY
@given(stems)
def test_every_key_has_a_canonical_name(stem):
    """And a kohya name."""
    name = canonical_name(stem)
    assert isinstance(name, str)
    assert isinstance(kohya_name(name), str)
    assert isinstance(kohya_name(name, ldm=True, single_text_encoder=True), str)


def test_canonical_names_are_their_own(sd15_names):
    """``canonical_name(canonical_name(x)) == canonical_name(x)`` for what is in real models."""
    for name in sd15_names:
        assert canonical_name(name) == name
        assert canonical_name(canonical_name(kohya_name(name))) == canonical_name(kohya_name(name)) == name
        assert canonical_name(kohya_name(name, ldm=True)) == name


@pytest.fixture(scope="module")
def sd15_names():
    blocks = [f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)]
    blocks += [f"up_blocks.{i}.attentions.{j}" for i in range(1, 4) for j in range(3)] + [
        "mid_block.attentions.0"
    ]
    inner = ["proj_in", "proj_out", "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.to_out.0"]
    names = [
        f"unet.{block}.{name}" for block in blocks for name in (*inner, "transformer_blocks.0.ff.net.0.proj")
    ]
    layers = [f"text_encoder.text_model.encoder.layers.{i}" for i in range(12)]
    return names + [f"{layer}.{name}" for layer in layers for name in ("self_attn.q_proj", "mlp.fc1")]


sides = st.integers(0, 4)
shapes = st.lists(sides, max_size=5).map(tuple)
dtypes = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64]
)
tensors = st.builds(lambda shape, dtype: torch.ones(shape, dtype=dtype), shapes, dtypes)
suffixes = st.sampled_from(
    """.lora_up.weight .lora_down.weight .lora_mid.weight .alpha .lora_A.weight .lora_B.weight .lora_A
    .dora_scale .lora_embedding_A .lora_embedding_B .hada_w1_a .hada_w1_b .hada_w2_a .hada_w2_b
    .hada_t1 .hada_t2 .lokr_w1 .lokr_w1_a .lokr_w1_b .lokr_w2 .lokr_w2_a .lokr_w2_b .lokr_t2
    .a1.weight .a2.weight .b1.weight .b2.weight .bm.weight .rescale .oft_R.weight .boft_R .boft_s
    .lora_magnitude_vector .oft_blocks .diff .diff_b .w_norm .b_norm .set_weight .reshape_weight
    .lora_B.bias .ia3_l .on_input""".split()
)
keys = st.builds(str.__add__, st.sampled_from(["lora_unet_conv_in", "unet.conv_in", "a"]) | stems, suffixes)


@MANY
@given(st.dictionaries(keys, tensors, max_size=6))
@example({"a.lora_up.weight": torch.ones(()), "a.lora_down.weight": torch.ones(())})
@example({"a.hada_w1_a": torch.ones(2, 2), "a.hada_w1_b": torch.ones(3, 2)})
def test_shapes_that_may_be_broken(state):
    """A LoRA whose deltas have the shapes that it says, or one sentence."""
    try:
        lora = from_tensors("x", state)
    except MergeError as error:
        assert "\n" not in str(error)
        return
    for name, layer in lora.layers.items():
        assert isinstance(name, str)
        assert tuple(layer.delta().shape) == layer.weight_shape
    try:
        merged = merge(
            [lora], base=lambda name: torch.ones(3) if name.endswith(".bias") else torch.ones(3, 3)
        )
        for name in merged.layers:
            merged.delta(name)
    except MergeError as error:
        assert "\n" not in str(error)


@MANY
@given(
    st.floats() | st.integers(-(2**40), 2**40),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.float64]),
)
def test_every_alpha(alpha, dtype):
    """The scale is alpha over rank, exactly as the file's type holds it; nothing is lost on the way."""
    tensor = torch.tensor(alpha, dtype=torch.float64).nan_to_num(0.0).clamp(-1e30, 1e30).to(dtype)
    state = {"a.lora_up.weight": torch.ones(3, 4), "a.lora_down.weight": torch.ones(4, 3), "a.alpha": tensor}
    try:
        lora = from_tensors("x", state)
    except MergeError as error:
        assert "alpha" in str(error)
        return
    assert lora.layers["a"].scale == float(tensor) / 4


numbers = st.floats() | st.integers() | st.booleans() | st.none() | st.text(max_size=4)


@MANY
@given(numbers, st.dictionaries(st.text(max_size=8), numbers, max_size=3), st.booleans(), stems)
def test_every_configuration(alpha, patterns, rslora, module):
    """What is let through gives a number for every module."""
    config = {"lora_alpha": alpha, "alpha_pattern": patterns, "use_rslora": rslora}
    try:
        check_scales(config)
    except MergeError as error:
        assert "alpha" in str(error) or "pattern" in str(error)
        return
    assert isinstance(scale_from_config(config, module, 4), float)


offsets = st.integers(0, 24)
header_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "U8", "BOOL", "I64", "F8_E4M3", "X9"]),
        "shape": st.lists(st.integers(0, 4), max_size=3),
        "data_offsets": st.lists(offsets, min_size=2, max_size=2),
    }
)


@MANY
@given(st.dictionaries(st.sampled_from("abc"), header_entries, max_size=3), st.binary(max_size=24))
@example({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, b"12")
@example(
    {n: {"dtype": "F16", "shape": [2], "data_offsets": [i, i + 4]} for i, n in ((0, "b"), (4, "a"))}, b"<" * 8
)
def test_we_accept_what_safetensors_accepts(tmp_path, header, data):
    """The same files, with the same numbers; only NaN and infinity are refused besides."""
    raw = json.dumps(header).encode()
    whole = struct.pack("<Q", len(raw)) + raw + data
    path = tmp_path / "x.safetensors"
    path.write_bytes(whole)
    try:
        theirs = load(whole)
    except SafetensorError:
        theirs = None
    try:
        ours, _ = read_container(path)
    except MergeError as error:
        assert theirs is None or "NaN or infinity" in str(error)
        return
    assert theirs is not None
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name].double(), tensor.double())


@MANY
@given(
    st.text()
    | st.lists(st.sampled_from(["<lora:", "a", ":", "1", "-", ">", "\n", "#", "nan", "\x85"])).map("".join)
)
def test_every_list_text(text):
    """Rows that can be written and read back, or one sentence with the number of the line."""
    try:
        rows = lora_text.parse_rows(text)
    except pack_errors.MergeError as error:
        assert "line" in str(error)
        return
    for row in rows:
        assert row.lora_name
        assert abs(row.strength) <= 100
    assert [row.lora_name for row in rows if not row.lora_name.strip()] == []
