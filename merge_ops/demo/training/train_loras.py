"""Train the demo's LoRAs on the base model with stock PEFT. About three minutes each on one core.

python -m merge_ops.demo.training.train_loras [NAME ...]

Half of each batch keeps what was there before (prior preservation): other prompts, with the base model's own
answer as the target. Without it a LoRA changes every prompt, and no merge can keep LoRAs apart.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from ..model import ASSETS, STYLES, load_model, predict, prompt
from .data import RENDER, digits
from .train_base import JITTER, KNOWN, loss_of, noisy

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
STEPS = 350
BATCH = 48


@dataclass(frozen=True)
class Plan:
    """What one LoRA learns, how large it is, and which format its file has."""

    name: str
    form: str  # peft, kohya, diffusers, diffusers-0.21
    rank: int
    alpha: int
    digit: int | None = None
    style: str | None = None
    targets: tuple[str, ...] = tuple(ATTENTION)


PLANS = (
    Plan("six", "diffusers-0.21", rank=4, alpha=4, digit=6),
    Plan("seven", "peft", rank=4, alpha=8, digit=7),
    Plan("neon", "diffusers", rank=4, alpha=6, style="neon"),
    Plan("slant", "kohya", rank=4, alpha=8, style="slant"),
    Plan("eight", "kohya", rank=8, alpha=8, digit=8),
    Plan("outline", "diffusers", rank=3, alpha=3, style="outline", targets=(*ATTENTION, "conv1", "conv2")),
)


def main() -> None:
    """Train all LoRAs, or those named on the command line."""
    for number, plan in enumerate(PLANS):
        if len(sys.argv) == 1 or plan.name in sys.argv[1:]:
            train(plan, seed=number)  # with one seed for all, LoRAs would start from the same factors


def train(plan: Plan, seed: int, folder: Path = ASSETS / "loras") -> None:
    """Train one LoRA and write its file; the seed decides its first factors and the order of its data."""
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)
    unet: Any
    unet, tokens = load_model()
    config = LoraConfig(r=plan.rank, lora_alpha=plan.alpha, target_modules=list(plan.targets))
    unet.add_adapter(config, adapter_name=plan.name)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS, pct_start=0.1)
    small, labels = digits("train")
    for step in range(STEPS):
        images, classes, styles = _new(plan, small, labels, BATCH // 2)
        old_images, old_classes, old_styles = _old(plan, small, labels, BATCH // 2)
        target = torch.cat((images, old_images))
        x, t = noisy(target)
        context = prompt(tokens, torch.cat((classes, old_classes)), torch.cat((styles, old_styles)))
        half = BATCH // 2
        unet.disable_adapters()
        with torch.no_grad():
            target[half:] = predict(unet, x[half:], t[half:], context[half:])
        unet.enable_adapters()
        loss = loss_of(predict(unet, x, t, context), target, t)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"{plan.name} step {step}: loss {loss.detach():.4f}", flush=True)
    write(plan, unet, config, folder)


def _new(plan: Plan, small: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the LoRA shall learn: its digit in plain ink, or the digits that the base knows in its style."""
    fits = (labels == plan.digit) if plan.digit is not None else (labels < KNOWN)
    chosen = fits.nonzero()[:, 0][torch.randint(int(fits.sum()), (count,))]
    style = plan.style or "plain"
    images = RENDER[style](small[chosen], jitter=torch.randn(count, 3) * JITTER) * 2 - 1
    return images, labels[chosen], torch.full((count,), STYLES.index(style))


def _old(plan: Plan, small: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the LoRA shall leave alone: plain images under any prompt that is not its own."""
    chosen = torch.randint(len(labels), (count,))
    images = RENDER["plain"](small[chosen], jitter=torch.randn(count, 3) * JITTER) * 2 - 1
    known = torch.rand(count) < 0.5
    classes = torch.where(known, torch.randint(KNOWN, (count,)), torch.randint(10, (count,)))
    styles = torch.where(known, torch.zeros(count, dtype=torch.long), torch.randint(len(STYLES), (count,)))
    if plan.digit is not None:
        classes = torch.where(classes == plan.digit, (plan.digit + 1) % 10, classes)
    if plan.style is not None:
        styles = torch.where(styles == STYLES.index(plan.style), 0, styles)
    return images, classes, styles


def write(plan: Plan, unet: nn.Module, config: LoraConfig, folder: Path) -> None:
    """Write the adapter in float16 in the plan's format."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = get_peft_model_state_dict(unet, adapter_name=plan.name)
    state = {key: value.half().contiguous() for key, value in trained.items()}
    target = folder / f"{plan.name}.safetensors"
    metadata = {"format": "pt"}
    stock: Any = config
    settings = {key: sorted(v) if isinstance(v, set) else v for key, v in stock.to_dict().items()}
    if plan.form == "peft":
        target = folder / plan.name / "adapter_model.safetensors"
        target.parent.mkdir(exist_ok=True)
        (target.parent / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        state = {f"base_model.model.{key}": value for key, value in state.items()}
    elif plan.form == "diffusers":
        metadata["lora_adapter_metadata"] = json.dumps({f"unet.{key}": v for key, v in settings.items()})
        state = {f"unet.{key}": value for key, value in state.items()}
    elif plan.form == "kohya":
        state = _kohya(state, plan.alpha)
        metadata |= {"ss_network_module": "networks.lora", "ss_network_dim": str(plan.rank)}
    else:
        state = _diffusers_021(state, plan.alpha / plan.rank)
    save_file(state, target, metadata)


def _kohya(state: dict[str, Tensor], alpha: int) -> dict[str, Tensor]:
    out = {}
    for key, value in state.items():
        path, _, role = key.partition(".lora_")
        stem = f"lora_unet_{path.replace('.', '_')}"
        out[f"{stem}.lora_{'down' if role.startswith('A') else 'up'}.weight"] = value
        out[f"{stem}.alpha"] = torch.tensor(float(alpha))
    return out


def _diffusers_021(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Old diffusers files have no alpha, so the scale goes into the up factor."""
    out = {}
    for key, value in state.items():
        path, _, role = key.partition(".lora_")
        down = role.startswith("A")
        out[f"unet.{path}.lora.{'down' if down else 'up'}.weight"] = value if down else value * scale
    return out


if __name__ == "__main__":
    main()
