"""The linear layers that an SDXL LoRA is usually trained on, taken from the model's own definition."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import NamedTuple

import torch
from torch import nn

# the configuration of stabilityai/stable-diffusion-xl-base-1.0
CONFIG = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
LAYERS, WEIGHTS = 722, 2_207_744_000
TEXT_ENCODERS = ("te1.", "te2.")  # what the names of their layers begin with, in kohya's words


class Layer(NamedTuple):
    """A linear layer: its name in the UNet, and the shape ``(rows, columns)`` of its weight."""

    name: str
    rows: int
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.columns


def attention_layers() -> list[Layer]:
    """Return the 722 linear layers of the UNet's attention blocks."""
    from diffusers import UNet2DConditionModel  # slow to import, and needed here only

    with torch.device("meta"):
        unet = UNet2DConditionModel(**CONFIG)
    layers = [
        Layer(name, *module.weight.shape)
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and ".attentions." in name
    ]
    if (len(layers), sum(layer.rows * layer.columns for layer in layers)) != (LAYERS, WEIGHTS):
        raise RuntimeError("this version of diffusers builds a different SDXL UNet than expected")
    return layers


def text_layers() -> list[Layer]:
    """Return the 264 linear layers of both text encoders that a LoRA is trained on."""
    sizes = (12, 768), (32, 1280)  # depth and width of CLIP ViT-L and OpenCLIP ViT-bigG
    layers = []
    for encoder, (depth, width) in zip(TEXT_ENCODERS, sizes, strict=True):
        shapes = {f"self_attn_{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        shapes |= {"mlp_fc1": (4 * width, width), "mlp_fc2": (width, 4 * width)}
        layers += [
            Layer(f"{encoder}text_model_encoder_layers_{number}_{part}", *shape)
            for number in range(depth)
            for part, shape in shapes.items()
        ]
    return layers


def stratified(layers: list[Layer], every: int) -> list[Layer]:
    """Return every ``every``-th layer of each shape, at least one, which keeps the proportions."""
    groups: dict[tuple[int, int], list[Layer]] = defaultdict(list)
    for layer in layers:
        groups[layer.shape].append(layer)
    return [layer for group in groups.values() for layer in group[::every]]


def one_per_shape(layers: list[Layer]) -> list[tuple[Layer, int]]:
    """Return the first layer of each shape with its number of layers, smallest shape first."""
    counts = Counter(layer.shape for layer in layers)
    first = {layer.shape: layer for layer in reversed(layers)}
    return [(first[s], counts[s]) for s in sorted(counts, key=lambda s: (s[0] * s[1], max(s)))]
