"""The judge: a small CNN, trained on the real digits, that recognises the digit and the style of an image."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from .model import ASSETS, STYLES


class Judge(nn.Module):
    """Maps images (n, 3, 24, 24) in [0, 1] to logits of digits (n, 10) and of styles (n, styles)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1),
            nn.GroupNorm(4, 24),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1),
            nn.GroupNorm(4, 48),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(48, 64, 3, padding=1),
            nn.GroupNorm(4, 64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.digit = nn.Linear(64 * 9, 10)
        self.style = nn.Linear(64 * 9, len(STYLES))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of digit and style."""
        features = self.features(images * 2 - 1)
        return self.digit(features), self.style(features)


def load_judge(folder: Path = ASSETS) -> Judge:
    """Load the judge in float32, in eval mode."""
    from safetensors.torch import load_file

    judge = Judge()
    judge.load_state_dict({k: v.float() for k, v in load_file(folder / "judge.safetensors").items()})
    return judge.eval().requires_grad_(False)


@torch.inference_mode()
def judged(judge: Judge, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the digit (n,) and the style (n,) that the judge recognises."""
    digit, style = judge(images)
    return digit.argmax(dim=1), style.argmax(dim=1)
