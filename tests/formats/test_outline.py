"""What the header alone says of a LoRA: as much as reading the file whole."""

import json
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from merge_ops import LoraFormatError, load
from merge_ops.formats.outline import read_outline
from merge_ops.names.recognise import guess
from tests.architectures.keys import MODULES, sizes, spellings, stems
from tests.nodes.lora_files import write_header
from tests.nodes.pack import pack_module

base_models = pack_module("nodes.values.base_models")
LABELS = {
    "sd1": "SD 1.5",
    "sd2": "SD 2",
    "sdxl": "SDXL",
    "sd3": "SD 3.5",
    "flux": "Flux.1",
    "flux2": "Flux.2",
    "chroma": "Flux.1",
    "auraflow": "AuraFlow",
    "pixart": "PixArt",
    "lumina2": "Lumina 2",
    "zimage": "Z-Image",
    "qwen": "Qwen-Image",
    "wan_t2v": "Wan",
    "wan_i2v": "Wan",
    "hunyuan": "HunyuanVideo",
    "ltx": "LTX",
    "hidream": "HiDream",
}


def test_every_model_is_named():
    """The table of labels has all models whose key lists there are."""
    assert LABELS.keys() == json.loads(MODULES.read_text(encoding="utf-8")).keys()


@pytest.mark.parametrize("model", LABELS)
def test_the_base_model_in_every_spelling(model, tmp_path):
    """A LoRA of a whole model, as each trainer writes it."""
    for spelling in spellings(model):
        entries = {}
        for stem, (_, shape) in stems(model, spelling).items():
            up, down = sizes(shape, 4)
            entries |= {stem + spelling.up: up, stem + spelling.down: down}
        write_header(tmp_path / "x.safetensors", entries)
        found = read_outline(tmp_path / "x.safetensors")
        assert found.ranks == (4,)
        named = base_models.name_base(found.guess, found.width, [], [])
        assert named == LABELS[model], spelling.label


@pytest.mark.parametrize(
    ("tensors", "kinds", "ranks"),
    [
        ({"lora_down.weight": (4, 32), "lora_up.weight": (16, 4)}, ("LoRA",), (4,)),
        ({"lora_down.weight": (4, 8, 3, 3), "lora_up.weight": (16, 4, 1, 1)}, ("LoCon",), (4,)),
        ({"lora_A.weight": (4, 8, 1, 1), "lora_B.weight": (16, 4, 1, 1)}, ("LoRA",), (4,)),
        (
            {"hada_w1_a": (16, 4), "hada_w1_b": (4, 32), "hada_w2_a": (16, 4), "hada_w2_b": (4, 32)},
            ("LoHa",),
            (4,),
        ),
        ({"lokr_w1": (4, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8)}, ("LoKr",), (2,)),
        ({"lokr_w1": (4, 4), "lokr_w2": (8, 8)}, ("LoKr",), ()),
        (
            {"lora_down.weight": (4, 32), "lora_up.weight": (16, 4), "dora_scale": (16, 1)},
            ("LoRA", "DoRA"),
            (4,),
        ),
        ({"oft_blocks": (4, 8, 8)}, ("OFT",), ()),
        ({"diff": (16, 32)}, ("full difference",), ()),
        ({"lambda_layer": (1, 4)}, ("T-LoRA",), ()),
    ],
)
def test_kinds(tensors, kinds, ranks, tmp_path):
    """Each by the names of its tensors; rank where there is one."""
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    write_header(tmp_path / "x.safetensors", {f"{stem}.{end}": shape for end, shape in tensors.items()})
    found = read_outline(tmp_path / "x.safetensors")
    assert (found.kinds, found.ranks, found.layers) == (kinds, ranks, 1)


def test_as_the_file_read_whole(tmp_path):
    """Layers, metadata and model of a real file with tensors."""
    import torch

    stem = "lora_unet_down_blocks_{}_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {}
    for at, rank in ((0, 2), (1, 3)):
        tensors[f"{stem.format(at)}.lora_down.weight"] = torch.ones(rank, 768)
        tensors[f"{stem.format(at)}.lora_up.weight"] = torch.ones(320, rank)
    save_file(tensors, tmp_path / "x.safetensors", {"ss_output_name": "x"})
    found, whole = read_outline(tmp_path / "x.safetensors"), load(tmp_path / "x.safetensors")
    assert found.layers == len(whole.layers) == 2
    assert found.metadata == whole.metadata == {"ss_output_name": "x"}
    assert found.guess == guess(whole) and found.guess.name == "sd1"
    assert found.ranks == (2, 3)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"short",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 40) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 5) + b"{nope",
        struct.pack("<Q", 9 << 20) + bytes(9 << 20),
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 4) + b"\xff\xfe{}",
        b"PK\x03\x04" + bytes(80),
    ],
    ids=range(10),
)
def test_broken_files(raw, tmp_path):
    """One sentence with the name of the file."""
    (tmp_path / "x.safetensors").write_bytes(raw)
    with pytest.raises(LoraFormatError, match=r"^x\.safetensors: "):
        read_outline(tmp_path / "x.safetensors")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ENDS = [
    ".lora_A.weight",
    ".lora_down.weight",
    ".lora_up.weight",
    ".hada_w1_a",
    ".lokr_w1",
    ".diff",
    ".alpha",
    "",
]
keys = st.sampled_from(["a.b", "lora_unet_x", "transformer_blocks.0.attn.to_q", "blocks.1.ffn.0"])
shapes = st.fixed_dictionaries({"shape": st.lists(st.integers(-1, 9), max_size=5) | values})
headers = st.dictionaries(
    st.builds(str.__add__, keys, st.sampled_from(ENDS)) | st.just("__metadata__") | st.text(max_size=9),
    shapes | values,
    max_size=8,
)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(headers)
def test_any_header(tmp_path, header):
    """Something is said of it, or why nothing is."""
    raw = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    try:
        found = read_outline(tmp_path / "x.safetensors")
    except LoraFormatError as error:
        assert "x.safetensors" in str(error)
    else:
        assert base_models.name_base(found.guess, found.width, [], []) in {None, *LABELS.values()}
        assert all(isinstance(text, str) for text in found.metadata.values())


def test_strange_entries_are_left_out(tmp_path):
    """Shapes that are none, and metadata of other types."""
    good = {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}
    odd = [None, [], 7, {"shape": "4"}, {"shape": [-1, 2]}, {"shape": [1e9]}, {"shape": [1 << 50, 1]}]
    header = {"a.lora_A.weight": good, "a.lora_B.weight": good}
    header |= {f"b{i}.lora_A.weight": entry for i, entry in enumerate(odd)}
    header["__metadata__"] = {"number": 1, "text": "yes"}
    raw = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    found = read_outline(tmp_path / "x.safetensors")
    assert (found.layers, found.metadata, found.guess) == (1, {"text": "yes"}, None)
