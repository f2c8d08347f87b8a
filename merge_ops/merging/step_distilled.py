"""LoRAs that teach a model to need fewer steps, such as LCM, Lightning, Turbo and Hyper.

They change every layer a little and in all directions, so that no part of them can be left out. A sign vote
or trimming would break them and disturb the other LoRAs; they are added after the merge instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ..lora import Lora, LowRank
from .svd import squared_singular_values

# names of the methods and models themselves. Where a LoRA was cut from a whole model by SVD, its spectrum
# falls as that of any difference does, and says nothing
_NAMES = {
    "lcm", "hypersd", "hypersdxl", "sdxllightning", "dmd2", "tcd", "rcm", "lightx2v", "causvid", "accvid",
    "accvideo", "fastwan", "selfforcing",
}  # fmt: skip
# words in the names of such LoRAs that styles and subjects have too
_WORDS = {
    "lightning", "turbo", "hyper", "dmd", "pcm", "sda", "fast", "distill", "distilled", "accelerated",
}  # fmt: skip
_STEPS = re.compile(r"(?<![0-9])(?:[1-9]|1[0-6])[ _-]?steps?(?![a-z])")  # 4steps, 8-step
_FORCING = re.compile(r"self[ -]forcing")
_METADATA = ("modelspec.title", "ss_output_name")
_WORD = re.compile(r"[a-z]+[0-9]*[a-z]*")
_NUMBERED = re.compile(r"[0-9]+[a-z]*$")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z][a-z])")
_SAMPLED = 24  # layers
_FLAT = 1 / 3  # of the rank: what a near-flat spectrum spreads over
_MOST = 0.75  # of the layers that are looked at


def is_step_distilled(lora: Lora) -> bool:
    """Return True for a LoRA whose name or metadata says so.

    Where they have nothing but a word that may mean something else, the spectrum must not speak against it: a
    LoRA of a style or subject has most of its change in a few directions of each layer.
    """
    words, has_steps = _stated(lora)
    return bool(words & _NAMES) or (bool(words & _WORDS or has_steps) and _is_flat(lora))


def lines_on_added(loras: Sequence[Lora]) -> list[str]:
    """Return a line for each LoRA that is added after a merge."""
    return [
        f"{lora.name} is a step-distillation LoRA: it is added after the merge"
        if is_step_distilled(lora)
        else f"{lora.name} is added after the merge of the others"
        for lora in loras
    ]


def _stated(lora: Lora) -> tuple[set[str], bool]:
    """The words of the name and of the titles in the metadata, and whether one states a number of steps."""
    words, has_steps = set[str](), False
    for text in (lora.name, *(lora.metadata.get(key, "") for key in _METADATA)):
        plain = f"{text} {_CAMEL.sub(' ', text)}".lower()
        found = _WORD.findall(_FORCING.sub("selfforcing", plain.replace("_", " ")))
        words.update(found, (_NUMBERED.sub("", word) for word in found))  # lcm15, but dmd2 too
        has_steps = has_steps or bool(_STEPS.search(plain))
    return words, has_steps


def _is_flat(lora: Lora) -> bool:
    """True if most layers spread their change over much of their rank; layers of rank 1 say nothing."""
    layers = [layer for layer in lora.layers.values() if isinstance(layer, LowRank) and layer.rank > 1]
    chosen = layers[:: max(1, len(layers) // _SAMPLED)]
    if not chosen:
        return not lora.base_dependent and bool(lora.layers)
    flat = sum(_spread(layer) >= _FLAT for layer in chosen)
    return flat >= _MOST * len(chosen)


def _spread(layer: LowRank) -> float:
    """The effective rank (the exponential of the entropy of the energy) as a share of the rank."""
    squares = squared_singular_values(layer.up, layer.down)
    total = float(squares.sum())
    if not total > 0:
        return 0.0
    shares = (squares / total).clamp_min(1e-300)
    return math.exp(-float((shares * shares.log()).sum())) / layer.rank
