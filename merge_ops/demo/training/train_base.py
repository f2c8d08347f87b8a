"""Train the base model: digits 0 to 4, in plain ink and in any colours. About seven minutes.

python -m merge_ops.demo.training.train_base
"""

import json

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..model import ASSETS, STYLES, UNET_CONFIG, new_tokens, new_unet, predict, prompt
from .data import RENDER, digits

KNOWN = 5  # the base has seen digits below this one
STEPS = 1200
BATCH = 48
JITTER = torch.tensor([0.06, 0.06, 0.08])


def noisy(images: Tensor) -> tuple[Tensor, Tensor]:
    """A random point on the line from noise to each image, and how far along it is: ``(x, t)``."""
    noise = torch.randn_like(images)
    t = torch.rand(len(images))
    return noise + (images - noise) * t[:, None, None, None], t


def loss_of(predicted: Tensor, images: Tensor, t: Tensor) -> Tensor:
    """Squared error, with more weight where little noise is left."""
    return ((predicted - images).square().mean(dim=(1, 2, 3)) / (1.1 - t)).mean()


def main(seed: int = 0) -> None:
    """Train, average the weights over time, and write them in float16."""
    torch.set_flush_denormal(True)  # numbers near zero would slow the processor down many times
    torch.manual_seed(seed)
    small, classes = digits("train")
    tokens = new_tokens()
    unet = new_unet(UNET_CONFIG)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS, pct_start=0.1)
    averaged = {name: value.clone() for name, value in unet.state_dict().items()}
    for step in range(STEPS):
        images, labels, styles = batch(small, classes)
        x, t = noisy(images)
        loss = loss_of(predict(unet, x, t, prompt(tokens, labels, styles)), images, t)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        for name, value in unet.state_dict().items():
            averaged[name].lerp_(value, 0.01)
        if step % 100 == 0:
            print(f"step {step}: loss {loss.detach():.4f}", flush=True)
    ASSETS.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half() for name, value in averaged.items()}
    save_file(weights, ASSETS / "model.safetensors", {"format": "pt"})
    save_file({"tokens": tokens}, ASSETS / "tokens.safetensors", {"format": "pt"})
    (ASSETS / "config.json").write_text(json.dumps(UNET_CONFIG, indent=2) + "\n", encoding="utf-8")


def batch(small: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images in [-1, 1], digits and styles: two thirds plain, one third in any colours."""
    known = (classes < KNOWN).nonzero()[:, 0]
    chosen = known[torch.randint(len(known), (BATCH,))]
    moved = torch.randn(BATCH, 3) * JITTER
    cut = BATCH * 2 // 3
    styles = (torch.arange(BATCH) >= cut).long() * STYLES.index("colours")
    plain = RENDER["plain"](small[chosen[:cut]], jitter=moved[:cut])
    coloured = RENDER["colours"](small[chosen[cut:]], jitter=moved[cut:])
    return torch.cat((plain, coloured)) * 2 - 1, classes[chosen], styles


if __name__ == "__main__":
    main()
