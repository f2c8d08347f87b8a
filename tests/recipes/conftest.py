"""LoRAs on the disk, for recipes that name them."""

import pytest
import torch

import merge_ops

SHAPES = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (24, 20),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2": (16, 40),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": (32, 12),
}


@pytest.fixture
def folder(tmp_path, make_lora):
    """A folder with two LoRA files of the same layers, and the same two as PEFT folders, of UNet layers."""
    home = tmp_path / "loras"
    home.mkdir()
    for seed, name in enumerate(("ink", "mia")):
        merged = merge_ops.merge([make_lora(name, shapes=SHAPES, rank=4, alpha=6, seed=seed)])
        merge_ops.save(merged, home / f"{name}.safetensors", dtype=torch.float32)
        own = make_lora(name, shapes=dict(list(SHAPES.items())[:2]), rank=4, alpha=6, seed=seed + 10)
        merge_ops.save(merge_ops.merge([own]), home / f"{name}_peft", format="peft", dtype=torch.float32)
    return home


@pytest.fixture
def pair(folder):
    """The two files, read."""
    return [merge_ops.load(folder / f"{name}.safetensors") for name in ("ink", "mia")]


@pytest.fixture
def same():
    """Whether two merges are equal, bit for bit."""

    def compare(a, b):
        return list(a.layers) == list(b.layers) and all(
            torch.equal(a.delta(name), b.delta(name)) for name in a.layers
        )

    return compare
