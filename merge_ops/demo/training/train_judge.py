"""Train the judge: a small CNN that says which digit, and in which style. About a minute on two cores.

python -m merge_ops.demo.training.train_judge
"""

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..judge import Judge
from ..model import ASSETS, STYLES
from .data import RENDER, digits

STEPS = 900
BATCH = 96


def batch(small: Tensor, labels: Tensor, count: int, jitter: float) -> tuple[Tensor, Tensor, Tensor]:
    """Random digits in random styles: images (n, 3, 24, 24), digits (n,), styles (n,)."""
    chosen = torch.randint(len(labels), (count,))
    styles = torch.randint(len(STYLES), (count,))
    images = torch.empty(count, 3, 24, 24)
    for index, name in enumerate(STYLES):
        rows = (styles == index).nonzero()[:, 0]
        moved = torch.randn(len(rows), 3) * jitter
        images[rows] = RENDER[name](small[chosen[rows]], jitter=moved)
    return images, labels[chosen], styles


def main(seed: int = 0) -> None:
    """Train on the training digits, print the accuracy on the held-out ones, and write the weights."""
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)  # numbers near zero would slow the processor down many times
    judge = Judge()
    small, labels = digits("train")
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
    for step in range(STEPS):
        images, classes, styles = batch(small, labels, BATCH, 0.1)
        images = (images + torch.randn_like(images) * 0.05 * torch.rand(BATCH, 1, 1, 1)).clamp(0, 1)
        digit, style = judge(images)
        loss = F.cross_entropy(digit, classes) + F.cross_entropy(style, styles)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.detach():.4f}", flush=True)
    judge.eval()
    with torch.inference_mode():
        images, classes, styles = batch(*digits("test"), 2000, 0.06)
        digit, style = judge(images)
    print(
        f"held out: digits {(digit.argmax(1) == classes).float().mean():.3f}, "
        f"styles {(style.argmax(1) == styles).float().mean():.3f}"
    )
    state = {name: value.half() for name, value in judge.state_dict().items()}
    save_file(state, ASSETS / "judge.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
