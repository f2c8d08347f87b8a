"""PEFT folders and index-keyed (pti) files that cannot be read, and what is said about them."""

import json

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from merge_ops import LoraFormatError

STEM = "base_model.model.model.layers.0.self_attn.q_proj"
TENSORS = {f"{STEM}.lora_A.weight": torch.ones(2, 5), f"{STEM}.lora_B.weight": torch.ones(6, 2)}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "adapter"
    path.mkdir()
    save_file(TENSORS, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(CONFIG))
    return path


def refuse(path, *messages):
    with pytest.raises(LoraFormatError) as caught:
        merge_ops.load(path)
    assert path.name in str(caught.value)
    for message in messages:
        assert message in str(caught.value)


def test_the_folder_itself_is_fine(folder):
    assert {name: layer.scale for name, layer in merge_ops.load(folder).layers.items()} == {
        "model.layers.0.self_attn.q_proj": 2.0
    }


def test_without_configuration(folder):
    (folder / "adapter_config.json").unlink()
    refuse(folder, "has no adapter_config.json", "give a PEFT adapter folder")


def test_without_weights(folder):
    (folder / "adapter_model.safetensors").unlink()
    refuse(folder, "has no adapter_model.safetensors", "give a PEFT adapter folder")
    torch.save(TENSORS, folder / "adapter_model.bin")
    refuse(folder, "adapter_model.bin: this is a pickle", "convert it", "--allow-pickle")


@pytest.mark.parametrize("kind", ["VERA", "PROMPT_TUNING", None, 7])
def test_other_kinds_of_adapters(kind, folder):
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"peft_type": kind}))
    refuse(folder, str(kind), "cannot be merged")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not json", "not valid JSON"),
        (b"\xff\xfe\xfa", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b" " * (16 * 2**20 + 1), "too large"),
    ],
    ids=["text", "bytes", "deep", "list", "huge"],
)
def test_configurations_that_are_no_configuration(content, message, folder):
    (folder / "adapter_config.json").write_bytes(content)
    refuse(folder, "adapter_config.json", message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lora_alpha": None}, "'lora_alpha' is None, not a finite number"),
        ({"lora_alpha": "16"}, "not a finite number"),
        ({"lora_alpha": float("nan")}, "not a finite number"),
        ({"lora_alpha": float("inf")}, "not a finite number"),
        ({"lora_alpha": 10**400}, "not a finite number"),
        ({"alpha_pattern": [1]}, "alpha_pattern is [1], not an object"),
        ({"alpha_pattern": {"q_proj": "a"}}, "'q_proj' is 'a', not a finite number"),
        ({"alpha_pattern": {"(": 1}}, "'(' is not a pattern"),
        ({"alpha_pattern": {r"(a)\1": 1}}, "is not a pattern that can be matched"),
        ({"target_parameters": True}, "target_parameters is True, not a list of names"),
        ({"target_parameters": 3}, "target_parameters is 3, not a list of names"),
        ({"target_parameters": [3]}, "target_parameters is [3], not a list of names"),
        ({"modules_to_save": True}, "modules_to_save is True, not a list of names"),
        ({"modules_to_save": {"head": 1}}, "not a list of names"),
        ({"rank_pattern": {"(": 1}}, "'(' is not a pattern"),
        ({"peft_type": "LOKR", "alpha": "8"}, "not a finite number"),
        ({"lora_alpha": "x" * 5000}, "xxx..., not a finite number"),
        ({"auto_mapping": "UNet2DConditionModel"}, "auto_mapping is not an object"),
    ],
)
def test_configurations_that_make_no_sense(changed, message, folder):
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changed))
    refuse(folder, "adapter_config.json", message)


def test_damaged_weights_in_a_folder(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LoraFormatError, match=r"adapter_model.safetensors: the file is cut off"):
        merge_ops.load(folder)


def test_what_is_no_low_rank_layer_is_listed(folder):
    extra = {
        "base_model.model.score.weight": torch.ones(2, 2),
        "base_model.model.odd": torch.ones(2, 2),
        f"{STEM.replace('q_proj', 'k_proj')}.lora_A.weight": torch.ones(2, 5),
        f"{STEM.replace('q_proj', 'k_proj')}.lora_B.weight": torch.ones(6, 2),
        f"{STEM.replace('q_proj', 'k_proj')}.lora_magnitude_vector": torch.ones(6),
    }
    save_file(TENSORS | extra, folder / "adapter_model.safetensors")
    lora = merge_ops.load(folder)
    assert list(lora.layers) == ["model.layers.0.self_attn.q_proj"]
    assert list(lora.whole_weights) == ["score"]
    assert list(lora.base_dependent) == ["model.layers.0.self_attn.k_proj"]
    assert lora.unmerged == {"base_model.model.odd": "unrecognised key"}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ('{"unet.lora_alpha": "x"}', "not a finite number"),
    ],
)
def test_bad_diffusers_metadata(raw, message, write):
    tensors = {key.replace(STEM, "unet.conv_in"): tensor for key, tensor in TENSORS.items()}
    refuse(write(tensors, {"lora_adapter_metadata": raw}), message)


PTI = {"unet:0:up": torch.ones(6, 2), "unet:0:down": torch.ones(2, 5), "<s1>": torch.ones(768)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "messages"),
    [
        (
            {"unet:160:up": torch.ones(6, 2), "unet:160:down": torch.ones(2, 5)},
            {},
            ["unet:160", "SD1.x", "144"],
        ),
        ({"text_encoder:48:up": torch.ones(6, 2)}, {}, ["text_encoder:48", "48 such modules"]),
        (PTI, {"unet": '["CrossAttention", "ResnetBlock2D"]'}, ["ResnetBlock2D", "is not known", "convert"]),
        (PTI, {"unet": "CrossAttention"}, ["'unet' is not a list of classes"]),
        (PTI, {"unet": "7"}, ["'unet' is not a list of classes"]),
        ({"unet:0:up": torch.ones(6, 2)}, {}, ["unet:0", "not the down half"]),
        (PTI | {"unet:0:up": torch.ones(6, 3)}, {}, ["do not fit each other"]),
    ],
)
def test_bad_pti_files(tensors, metadata, messages, write):
    refuse(write(tensors, metadata), *messages)


def test_pti_embeddings_are_listed(write):
    lora = merge_ops.load(write(PTI))
    assert list(lora.layers) == ["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"]
    assert "textual-inversion" in lora.unmerged["<s1>"]
