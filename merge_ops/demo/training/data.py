"""The training images: scikit-learn's handwritten digits, redrawn at 24 x 24 in five styles."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import SIZE, STYLES

PAPER = (0.97, 0.95, 0.90)
INK = (0.10, 0.14, 0.28)


def digits(split: str) -> tuple[Tensor, Tensor]:
    """Return the 8 x 8 digits in [0, 1] as (n, 1, 8, 8) and their classes (n,); every fifth one is held
    out.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16  # (n, 1, 8, 8)
    classes = torch.tensor(data.target, dtype=torch.long)
    held_out = torch.arange(len(classes)) % 5 == 0
    keep = held_out if split == "test" else ~held_out
    return images[keep], classes[keep]


def strokes(small: Tensor, shear: float = 0.0, jitter: Tensor | None = None) -> Tensor:
    """Redraw 8 x 8 digits as smooth strokes (n, 1, 24, 24) in [0, 1]; shear leans them to the right.

    Args:
        small: digits in [0, 1], (n, 1, 8, 8).
        shear: horizontal shift per unit of height.
        jitter: optional (n, 3): shift right, shift down (both as a fraction of half the image), log2 zoom.
    """
    smooth = F.interpolate(small, scale_factor=6, mode="bicubic", align_corners=False)  # (n, 1, 48, 48)
    smooth = torch.sigmoid((F.pad(smooth, (6, 6, 6, 6)) - 0.45) * 10)
    jitter = torch.zeros(len(small), 3) if jitter is None else jitter
    theta = torch.zeros(len(small), 2, 3)
    zoom = torch.exp2(-jitter[:, 2])
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, 0, 1] = shear * zoom
    theta[:, :, 2] = -jitter[:, :2]
    grid = F.affine_grid(theta, [len(small), 1, 3 * SIZE, 3 * SIZE], align_corners=False)
    drawn = F.grid_sample(smooth, grid, mode="bilinear", align_corners=False)
    return F.avg_pool2d(drawn, 3).clamp(0, 1)


def _mix(paper: tuple[float, ...], ink: tuple[float, ...], mask: Tensor) -> Tensor:
    """Blend two colours by a mask (n, 1, h, w) -> (n, 3, h, w)."""
    low, high = torch.tensor(paper)[:, None, None], torch.tensor(ink)[:, None, None]
    return low + (high - low) * mask


def plain(small: Tensor, jitter: Tensor | None = None) -> Tensor:
    """Dark ink on paper."""
    return _mix(PAPER, INK, strokes(small, jitter=jitter))


def neon(small: Tensor, jitter: Tensor | None = None) -> Tensor:
    """A glowing tube, cyan above and magenta below, on a dark wall."""
    mask = strokes(small, jitter=jitter)
    height = torch.linspace(0, 1, SIZE)[:, None]  # (h, 1), 0 at the top
    cyan, magenta = torch.tensor((0.15, 0.95, 1.0)), torch.tensor((1.0, 0.25, 0.85))
    colour = cyan[:, None, None] * (1 - height) + magenta[:, None, None] * height  # (3, h, 1)
    glow = F.avg_pool2d(F.avg_pool2d(mask, 5, 1, 2), 5, 1, 2)
    wall = torch.tensor((0.07, 0.04, 0.16))[:, None, None]
    return (wall + (colour - wall) * (0.35 * glow + 0.85 * mask).clamp(0, 1)).clamp(0, 1)


def colours(small: Tensor, jitter: Tensor | None = None) -> Tensor:
    """Any ink on any paper, as long as one is much lighter; the base model has seen these."""
    pairs = torch.rand(64 * len(small), 2, 3, 1, 1)
    contrast = (pairs[:, 0] - pairs[:, 1]).mean(dim=(1, 2, 3)).abs()
    pairs = pairs[contrast > 0.35][: len(small)]  # (n, 2, 3, 1, 1)
    return pairs[:, 0] + (pairs[:, 1] - pairs[:, 0]) * strokes(small, jitter=jitter)


def outline(small: Tensor, jitter: Tensor | None = None) -> Tensor:
    """The contour of every stroke in red, hollow inside."""
    mask = strokes(small, jitter=jitter)
    ring = F.max_pool2d(mask, 3, 1, 1) - 0.95 * (-F.max_pool2d(-mask, 3, 1, 1))
    return _mix(PAPER, (0.80, 0.13, 0.15), ring.clamp(0, 1))


def slant(small: Tensor, jitter: Tensor | None = None) -> Tensor:
    """Ink on paper, leaning far to the right."""
    return _mix(PAPER, INK, strokes(small, shear=0.6, jitter=jitter))


RENDER: dict[str, Callable[..., Tensor]] = dict(
    zip(STYLES, (plain, colours, neon, outline, slant), strict=True)
)
