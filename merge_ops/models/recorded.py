"""Recording with a diffusers pipeline or with the texts of a transformers model, in one call."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ParameterError
from ..learning.record import record
from ..learning.recording import Recording
from ..lora import Lora
from .hosts import DiffusersHost, TransformersHost

Prompts = str | Sequence[str]


def record_pipeline(
    pipe: Any,
    loras: Sequence[Lora],
    prompts: Sequence[Prompts],
    *,
    keep: Prompts = ("",),
    together: Prompts | None = None,
    text_encoders: bool = False,
    seed: int = 0,
    sampling: dict[str, Any] | None = None,
    **options: Any,
) -> Recording:
    """Record what LoRAs do to a diffusers pipeline: one sampling run for each prompt.

    >>> recording = record_pipeline(pipe, loras, ["photo of mia", ["ink fox", "ink house", "ink tree"]],
    ...                             sampling={"num_inference_steps": 8, "height": 512, "width": 512})

    Args:
        pipe: the pipeline.
        loras: what is to be merged.
        prompts: one prompt or several for each LoRA, trigger words included.
        keep: prompts whose images must stay as the base model makes them.
        together: prompts that name several LoRAs; None joins the first prompts of every two of them.
        text_encoders: True to record the text encoders too.
        seed: of the noise, which is another for every prompt, and of the choice of samples.
        sampling: keywords of the pipeline's call, such as ``num_inference_steps``.
        options: keywords of ``learning.record``: ``weights``, ``blocks``, ``budget``, ...

    Raises:
        ParameterError: if there is not one entry of prompts per LoRA.
    """
    own = _one_per_lora(loras, prompts, "prompts")
    joined = pairs_of(own) if together is None else _listed(together)
    kept = _listed(keep)
    keywords = {"num_inference_steps": 8, "output_type": "latent", **(sampling or {})}
    numbers = itertools.count(seed)

    def draw(texts: Sequence[str]) -> None:
        for text in texts:
            noise = torch.Generator().manual_seed(next(numbers))
            pipe(prompt=text, generator=noise, **keywords)

    with torch.no_grad():
        return record(
            DiffusersHost(pipe, text_encoders), loras, _run(loras, own, draw), prompts=own, seed=seed,
            keep=(lambda: draw(kept)) if kept else None,
            together=(lambda: draw(joined)) if joined else None,
            keep_prompts=kept, together_prompts=joined, **options,
        )  # fmt: skip


def record_texts(
    model: nn.Module,
    tokenizer: Any,
    loras: Sequence[Lora],
    texts: Sequence[Prompts],
    *,
    keep: Prompts = (),
    max_length: int = 256,
    batch: int = 16,
    seed: int = 0,
    **options: Any,
) -> Recording:
    """Record what LoRAs do to a transformers model, on unlabelled texts of each one's task.

    Args:
        model: the base model.
        tokenizer: its tokenizer.
        loras: what is to be merged.
        texts: of each LoRA; a few dozen are enough.
        keep: texts on which the base model must stay as it is.
        max_length: tokens after which a text is cut off.
        batch: texts that run at once.
        seed: of the choice of samples.
        options: keywords of ``learning.record``: ``weights``, ``budget``, ...

    Raises:
        ParameterError: if there is not one entry of texts per LoRA.
    """
    own = _one_per_lora(loras, texts, "texts")
    kept = _listed(keep)
    device = next(model.parameters()).device

    def read(given: Sequence[str]) -> None:
        for start in range(0, len(given), batch):
            tokens = tokenizer(
                list(given[start : start + batch]), padding=True, truncation=True, max_length=max_length,
                return_tensors="pt",
            )  # fmt: skip
            model(**{name: tokens[name].to(device) for name in ("input_ids", "attention_mask")})

    with torch.no_grad():
        return record(
            TransformersHost(model), loras, _run(loras, own, read), prompts=own, seed=seed,
            keep=(lambda: read(kept)) if kept else None, keep_prompts=kept, **options,
        )  # fmt: skip


def pairs_of(prompts: Sequence[Sequence[str]]) -> list[str]:
    """Return prompts that name two LoRAs each: the first prompts of every two, joined by a comma."""
    return [f"{a[0]}, {b[0]}" for a, b in itertools.combinations(prompts, 2)]


def _run(
    loras: Sequence[Lora], own: Sequence[Sequence[str]], use: Callable[[Sequence[str]], None]
) -> Callable[[Lora], None]:
    turns = {id(lora): [own[i] for i, each in enumerate(loras) if each is lora] for lora in loras}

    def run(lora: Lora) -> None:  # a LoRA that is given twice takes its prompts in turn
        use(turns[id(lora)].pop(0))

    return run


def _one_per_lora(loras: Sequence[Lora], texts: Sequence[Prompts], what: str) -> list[list[str]]:
    if isinstance(texts, str) or len(texts) != len(loras):
        raise ParameterError(f"{len(loras)} LoRAs need {len(loras)} entries of {what}, one for each")
    listed = [_listed(each) for each in texts]
    for lora, own in zip(loras, listed, strict=True):
        if not own:
            raise ParameterError(f"{lora.name} has no {what}; give at least one that shows what it does")
    return listed


def _listed(texts: Prompts) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
