"""A LoRA is read as it was at one moment, and odd names and metadata are refused in one sentence."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from merge_ops.formats import peft_folder, read

STEM = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.fixture
def tensors():
    return {f"{STEM}.lora_up.weight": torch.ones(4, 2), f"{STEM}.lora_down.weight": torch.ones(2, 3)}


def test_a_file_replaced_between_reading_and_hashing(tensors, tmp_path, monkeypatch):
    """The checksum would be that of other weights than those that were read."""
    path = tmp_path / "trained_again.safetensors"
    save_file(tensors, path)
    digest = read.file_digest

    def replaced(*files):
        os.utime(path, ns=(1, 1))
        return digest(*files)

    monkeypatch.setattr(read, "file_digest", replaced)
    with pytest.raises(merge_ops.LoraFormatError, match="changed while it was read"):
        merge_ops.load(path)


def test_a_configuration_that_changes_under_its_weights(tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    folder.mkdir()
    names = ("base_model.model.fc.lora_A.weight", "base_model.model.fc.lora_B.weight")
    save_file(dict(zip(names, (torch.ones(2, 3), torch.ones(4, 2)), strict=True)), folder / read.WEIGHTS_NAME)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    container = peft_folder.read_container

    def replaced(path, *how, **more):
        config.write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 400}))
        return container(path, *how, **more)

    assert merge_ops.load(folder).layers["fc"].scale == 2
    monkeypatch.setattr(peft_folder, "read_container", replaced)
    with pytest.raises(merge_ops.LoraFormatError, match="changed while it was read"):
        merge_ops.load(folder)


def test_a_name_longer_than_any_file_has(tmp_path):
    with pytest.raises(merge_ops.LoraFormatError) as caught:
        merge_ops.load(tmp_path / ("x" * 5000))
    assert len(str(caught.value)) < 300


def test_metadata_without_end(tensors, tmp_path):
    path = tmp_path / "long.safetensors"
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps({"unet.r": "9" * (3 << 20)})})
    with pytest.raises(merge_ops.LoraFormatError, match="characters"):
        merge_ops.load(path)
