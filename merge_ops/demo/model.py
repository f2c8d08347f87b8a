"""The demo's diffusion model: a small class-conditional diffusers UNet and its sampler.

A prompt is two tokens: the digit and the style. Images are RGB, 24 x 24; the UNet sees them as 12 x 12
patches of 2 x 2 pixels (12 channels). It is trained by flow matching and predicts the clean image.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ASSETS = Path(__file__).parent / "assets"
SIZE = 24
STYLES = ("plain", "colours", "neon", "outline", "slant")
TOKENS = 10 + len(STYLES)
TOKEN_DIM = 32
UNET_CONFIG = {
    "sample_size": SIZE // 2,
    "in_channels": 12,
    "out_channels": 12,
    "block_out_channels": [32, 48, 64],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": TOKEN_DIM,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def new_tokens(seed: int = 0) -> Tensor:
    """Return the fixed token table (15, 32): ten digits, then the styles; orthogonal rows of length
    sqrt(32).
    """
    generator = torch.Generator().manual_seed(seed)
    rows: Tensor = torch.linalg.qr(torch.randn(TOKEN_DIM, TOKEN_DIM, generator=generator))[0][:TOKENS]
    return rows.mul(TOKEN_DIM**0.5).contiguous()


def prompt(tokens: Tensor, classes: Tensor, styles: Tensor) -> Tensor:
    """Look up digit and style: classes (n,), styles (n,) -> (n, 2, 32)."""
    return torch.stack([tokens[classes], tokens[10 + styles]], dim=1)


def predict(unet: nn.Module, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """Predict the clean images for noisy images x (n, 3, 24, 24) at times t (n,), 0 = noise, 1 = image."""
    patches = F.pixel_unshuffle(x, 2)  # (n, 12, 12, 12)
    predicted: Tensor = unet(patches, t * 1000, context, return_dict=False)[0]
    return F.pixel_shuffle(predicted, 2)


def new_unet(config: dict[str, Any]) -> nn.Module:
    """Create an untrained diffusers ``UNet2DConditionModel``."""
    import diffusers

    factory: Any = diffusers.UNet2DConditionModel
    unet: nn.Module = factory(**config)
    return unet


def load_model(folder: Path = ASSETS) -> tuple[nn.Module, Tensor]:
    """Load the UNet in float32, in eval mode, and the token table (15, 32)."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    unet = new_unet(config)
    unet.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    tokens = load_file(folder / "tokens.safetensors")["tokens"].float()
    return unet.eval().requires_grad_(False), tokens


@torch.inference_mode()
def sample(
    unet: nn.Module,
    tokens: Tensor,
    prompts: Sequence[tuple[int, str]],
    count: int,
    seed: int = 0,
    steps: int = 6,
) -> Tensor:
    """Draw images with Euler steps of the flow.

    Args:
        unet: the model, with or without a merge in its weights.
        tokens: token table, (15, 32).
        prompts: digit and style of each prompt.
        count: images per prompt; image i starts from the same noise for every prompt and every model.
        seed: seed of the noise.
        steps: number of Euler steps.

    Returns:
        Images in [0, 1], (prompts, count, 3, 24, 24).
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, SIZE, SIZE, generator=generator).repeat(len(prompts), 1, 1, 1)
    digits = torch.tensor([digit for digit, _ in prompts])
    styles = torch.tensor([STYLES.index(style) for _, style in prompts])
    context = prompt(tokens, digits, styles).repeat_interleave(count, dim=0)  # (prompts * count, 2, 32)
    times = torch.linspace(0, 1, steps + 1)
    for now, then in itertools.pairwise(times):
        image = predict(unet, x, now.expand(len(x)), context)
        x = x + (then - now) / (1 - now) * (image - x)
    return (x * 0.5 + 0.5).clamp(0, 1).reshape(len(prompts), count, 3, SIZE, SIZE)
