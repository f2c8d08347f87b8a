"""Tensors of any shape beside a configuration of any type: a LoRA, or one sentence with the file's name."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from merge_ops import MergeError, ParameterError
from merge_ops.cli import main
from merge_ops.merging.devices import usable_device

STEM = "lora_unet_mid_block_attentions_0_proj_in"
KINDS = {
    "LORA": {"lora_A.weight": (2, 4), "lora_B.weight": (4, 2), "lora_magnitude_vector": (4,)},
    "LOHA": {f"hada_w{i}_{half}": (2, 2) for i in (1, 2) for half in "ab"},
    "LOKR": {"lokr_w1": (2, 2), "lokr_w2_a": (1, 1), "lokr_w2_b": (1, 1)},
    "IA3": {"ia3_l": (2, 1)},
    "OFT": {"oft_R.weight": (1, 1)},
    "BOFT": {"boft_R": (1, 1, 2, 2), "boft_s": (2, 1)},
}
OPTIONS = """r alpha lora_alpha rank_pattern alpha_pattern target_modules feedforward_modules modules_to_save
    bias coft eps use_cayley_neumann num_cayley_neumann_terms fan_in_fan_out use_rslora use_dora auto_mapping
    target_parameters exclude_modules layers_to_transform layers_pattern trainable_token_indices token_indices
    init_lora_weights layer_replication peft_type""".split()
VALUES = [
    True,
    False,
    None,
    0,
    3,
    -1,
    10**400,
    1.5,
    1e-320,
    float("nan"),
    float("inf"),
    "",
    "(",
    "q",
    [],
    [3],
]
VALUES += [[None], ["q"], [["q"]], {}, {"q": None}, {"q": {}}, {"(": 1}, {"q": 10**400}]


def folder_of(path, kind, config, shapes=None):
    path.mkdir(exist_ok=True)
    tensors = {f"base_model.model.m.q.{end}": torch.ones(s) for end, s in (shapes or KINDS[kind]).items()}
    tensors["base_model.model.head.weight"] = torch.ones(2, 2)
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "r": 2} | config))
    return path


def file_of(path, tensors, metadata=None):
    named = {f"{STEM}.{end}": tensor.clone() for end, tensor in tensors.items()}
    save_file(named, path, {key: json.dumps(value) for key, value in (metadata or {}).items()})
    return path


def used(path, out):
    """Load, merge with a small model and save; what may be refused is refused in one line."""
    try:
        lora = merge_ops.load(path)
    except MergeError as error:
        assert str(error).startswith(path.name)
        assert "\n" not in str(error)
        return
    try:
        merged = merge_ops.merge([lora], base=lambda name: torch.ones(2 if "bias" in name else (2, 2)))
        for name in merged.layers:
            merged.delta(name)
        merge_ops.save(merged, out, format="peft", overwrite=True)
    except MergeError as error:
        assert "\n" not in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_setting_of_every_type(kind, option, tmp_path):
    for value in VALUES:
        used(folder_of(tmp_path / "adapter", kind, {option: value}), tmp_path / "out")


@pytest.mark.parametrize("option", OPTIONS)
def test_every_setting_of_every_type_in_the_metadata_of_a_file(option, tmp_path):
    tensors = {"unet.a.lora_A.weight": torch.ones(2, 4), "unet.a.lora_B.weight": torch.ones(4, 2)}
    for value in VALUES:
        for prefix in ("", "unet."):
            meta = {f"{prefix}r": 2, f"{prefix}{option}": value}
            save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(meta)})
            used(tmp_path / "x.safetensors", tmp_path / "out")


SHAPES = [
    (),
    (1,),
    (0,),
    (0, 4),
    (4, 0),
    (2, 0, 1, 1),
    (2, 4),
    (4, 2),
    (2, 4, 1),
    (2, 4, 3, 3),
    (1, 1, 1, 1, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize("first", SHAPES)
@pytest.mark.parametrize("second", SHAPES)
def test_factors_of_any_shape_beside_a_configuration(first, second, tmp_path):
    """Scalars, and ranks of 0, once ended in an IndexError or a ZeroDivisionError."""
    config = {
        "lora_alpha": 2,
        "rank_pattern": {"q": 1},
        "target_parameters": ["q.weight"],
        "use_rslora": True,
    }
    shapes = {"lora_A.weight": first, "lora_B.weight": second}
    for more in ({}, config):
        used(folder_of(tmp_path / "adapter", "LORA", more, shapes), tmp_path / "out")
    tensors = {"unet.a.lora_A.weight": torch.ones(first), "unet.a.lora_B.weight": torch.ones(second)}
    meta = json.dumps({"unet.r": 2, "unet.lora_alpha": 2})
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": meta})
    used(tmp_path / "x.safetensors", tmp_path / "out")


BASED = {
    "GLoRA": {f"{part}.weight": (2, 2) for part in ("a1", "a2", "b1", "b2")},
    "OFT": {"oft_blocks": (1, 2, 2), "rescale": (2, 1)},
    "(IA)3": {"ia3_l": (2,), "on_input": ()},
    "DoRA": {"lora_up.weight": (2, 1), "lora_down.weight": (1, 2), "dora_scale": (2, 1)},
    "BOFT": {"oft_blocks": (1, 1, 2, 2)},
}


@pytest.mark.parametrize("kind", sorted(BASED))
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "ties", "tsv"])
def test_empty_tensors_of_kinds_that_need_the_base(kind, method, tmp_path):
    """The fingerprint that seeds random masks could not be taken of them."""
    for empty in BASED[kind]:
        for shape in ((0,), (0, 2), (0, 2, 2), (1, 0, 0)):
            shapes = BASED[kind] | {empty: shape}
            path = file_of(tmp_path / "x.safetensors", {end: torch.ones(s) for end, s in shapes.items()})
            with pytest.raises(MergeError):
                lora = merge_ops.load(path)
                merge_ops.merge([lora, lora], method=method, base=lambda name: torch.ones(2, 2))


def test_an_empty_weight_of_the_base(tmp_path):
    shapes = BASED["OFT"]
    lora = merge_ops.load(
        file_of(tmp_path / "x.safetensors", {end: torch.ones(s) for end, s in shapes.items()})
    )
    for weight in (torch.ones(()), torch.ones(0, 2), torch.ones(2, 0)):
        with pytest.raises(MergeError, match=r"x: (the weight of|1 of 1 weights do not fit)"):
            merge_ops.merge([lora], base=lambda name, weight=weight: weight)


@pytest.mark.parametrize("kind", sorted(BASED))
def test_tensors_of_any_shape_in_every_role(kind, tmp_path):
    """A scalar magnitude, 3-D factors, a rescale of another size: fits, or one sentence."""
    for role in BASED[kind]:
        for shape in (*SHAPES, (2, 2, 1, 1), (3, 1, 2, 2), (2, 1, 1), (1, 2, 1, 1)):
            shapes = BASED[kind] | {role: shape}
            path = file_of(tmp_path / "x.safetensors", {end: torch.ones(s) for end, s in shapes.items()})
            try:
                lora = merge_ops.load(path)
                merged = merge_ops.merge([lora, lora], method="ties", base=lambda name: torch.ones(2, 2))
                assert all(merged.delta(name).shape == (2, 2) for name in merged.layers)
            except MergeError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize(
    "device", ["meta", "nowhere", "", "hpu", "vulkan", "cuda:99", "mtia", "xla", "privateuseone"]
)
def test_a_device_on_which_nothing_is_computed(device, tmp_path, capsys):
    tensors = {"lora_up.weight": torch.ones(4, 2), "lora_down.weight": torch.ones(2, 4)}
    path = file_of(tmp_path / "x.safetensors", tensors)
    lora = merge_ops.load(path)
    with pytest.raises(ParameterError, match="device"):
        merge_ops.merge([lora], device=device)
    with pytest.raises(ParameterError, match="device"):
        merge_ops.merge([lora]).delta(next(iter(lora.layers)), device=device)
    out = str(tmp_path / "y.safetensors")
    for command in (["merge", str(path), "-o", out], ["resize", str(path), "--rank", "1", "-o", out]):
        assert main([*command, "--device", device]) == 1
        assert "device" in capsys.readouterr().err
    assert usable_device("cpu") == torch.device("cpu")
    assert usable_device(None) is None


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0), (2, 2), (2, 2, 1)])
@pytest.mark.parametrize("name", ["embed_tokens", "x_embedder", "lm_head", "wte"])
def test_embeddings_of_any_shape(name, shape, tmp_path):
    """Two LoRAs that hold one are compared token by token, where there are tokens."""
    path = folder_of(tmp_path / "adapter", "LOKR", {"bias": "all"})
    tensors = {f"base_model.model.m.q.{end}": torch.ones(s) for end, s in KINDS["LOKR"].items()}
    tensors |= {f"base_model.model.{name}.{end}": torch.ones(shape) for end in ("weight", "bias")}
    save_file(tensors, path / "adapter_model.safetensors")
    lora = merge_ops.load(path)
    merged = merge_ops.merge([lora, lora])
    assert (len(merged.layers), len(merged.whole_weights)) == (1, 2)


def test_whole_weights_of_packed_numbers(tmp_path):
    """Two numbers in a byte cannot be compared or converted; they are refused as those of adapters are."""
    key = "diffusion_model.img_in"
    header = json.dumps(
        {f"{key}.set_weight": {"dtype": "F4", "shape": [2, 2], "data_offsets": [0, 2]}}
    ).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(2))
    with pytest.raises(MergeError, match=rf"^x\.safetensors: {key} is stored as torch\.float4"):
        merge_ops.load(path)
