"""Recording the demo's model with each LoRA alone, for the merges that learn from it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..learning import Recording, calibrate, distill, record
from ..lora import Lora
from ..merging.merged import Merged
from ..models.hosts import DiffusersHost
from .model import sample
from .plan import Prompt, label

NOISE = 1000  # the first seed of recordings; drawings that are judged start from other noise
DRAWN = 16  # drawings of a LoRA that has one prompt
DRAWN_OF_SEVERAL = 4  # drawings of each prompt where there are several
KEEP: tuple[Prompt, ...] = ((1, "plain"), (2, "plain"))  # what the base can draw, and shall go on drawing


def recorded(
    unet: nn.Module,
    tokens: Tensor,
    loras: Sequence[Lora],
    prompts: Sequence[Sequence[Prompt]],
    keep: Sequence[Prompt] = KEEP,
    together: Sequence[Prompt] = (),
) -> Recording:
    """Record each LoRA alone on its own prompts, the base on some, and the sum of all LoRAs on others.

    Args:
        unet: the base model.
        tokens: token table, (15, 32).
        loras: what is to be merged, at strength 1.
        prompts: the prompts of each LoRA.
        keep: prompts of the base model.
        together: prompts of the sum of all LoRAs.
    """

    def draw(asked: Sequence[Prompt]) -> None:
        count = DRAWN if len(asked) == 1 else DRAWN_OF_SEVERAL
        for number, prompt in enumerate(asked):
            sample(unet, tokens, [prompt], count, NOISE + number)

    asked = {id(lora): own for lora, own in zip(loras, prompts, strict=True)}
    return record(
        DiffusersHost(unet),
        loras,
        lambda lora: draw(asked[id(lora)]),
        keep=lambda: draw(keep),
        together=(lambda: draw(together)) if together else None,
        prompts=[[label(prompt) for prompt in own] for own in prompts],
        keep_prompts=[label(prompt) for prompt in keep],
        together_prompts=[label(prompt) for prompt in together],
        seed=NOISE,
    )


def learn(how: str, unet: nn.Module, recording: Recording, loras: Sequence[Lora], steps: int = 60) -> Merged:
    """Merge by ``calibrated``, or by ``distilled`` in some steps."""
    if how == "calibrated":
        return calibrate(recording, DiffusersHost(unet), loras)
    return distill(recording, DiffusersHost(unet), loras, steps=steps)
