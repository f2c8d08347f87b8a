"""Lining up the layers of several LoRAs by name, or refusing to where their names differ in structure.

Two spellings of one path (``lora_unet_blocks_0_attn_q``, ``transformer.blocks.0.attn.q``) are brought to one
name here. Names of another structure, such as diffusers' split q, k and v and the fused qkv of a model's
authors, are not: those need ``load(path, architecture=...)``, or a model that knows both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import IncompatibleLoraError
from ..lora import Lora
from .parts import flat_name
from .recognise import guess


def name_alike(loras: Sequence[Lora]) -> list[Lora]:
    """Give each path one name in all LoRAs, the one with most dots, however their files spell it.

    Raises:
        IncompatibleLoraError: if one LoRA has a layer in two spellings.
    """
    names: dict[str, set[str]] = {}
    for lora in loras:
        for name in (*lora.layers, *lora.whole_weights):
            names.setdefault(flat_name(name), set()).add(name)
    common = {
        name: max(alike, key=lambda other: (other.count("."), other))
        for alike in names.values()
        if len(alike) > 1
        for name in alike
    }
    return [_rename(lora, common) for lora in loras]


def _rename(lora: Lora, common: dict[str, str]) -> Lora:
    layers = {common.get(name, name): layer for name, layer in lora.layers.items()}
    whole_weights = {common.get(name, name): weight for name, weight in lora.whole_weights.items()}
    if layers.keys() == lora.layers.keys() and whole_weights.keys() == lora.whole_weights.keys():
        return lora
    if len(layers) < len(lora.layers) or len(whole_weights) < len(lora.whole_weights):
        raise IncompatibleLoraError(f"{lora.name} has one layer in two spellings; keep one of them")
    return replace(lora, layers=layers, whole_weights=whole_weights, origin=lora.origin or lora)


def check_structure(loras: Sequence[Lora]) -> None:
    """Refuse to merge two LoRAs for one model that share no layer because their names differ in structure.

    Raises:
        IncompatibleLoraError: the message names both and says what to do.
    """
    guesses = [(lora, guess(lora)) for lora in loras] if _any_share_nothing(loras) else []
    for i, (a, guess_a) in enumerate(guesses):
        for b, guess_b in guesses[i + 1 :]:
            if guess_a is None or guess_b is None or guess_a.name != guess_b.name:
                continue
            if guess_a.structure != guess_b.structure:
                original, diffusers = (a, b) if guess_a.structure == "original" else (b, a)
                raise IncompatibleLoraError(
                    f"{original.name} uses the layer names of {guess_a.title}'s authors and {diffusers.name} "
                    "those of diffusers, so no layer of one would meet a layer of the other; read both with "
                    f"load(path, architecture={guess_a.name!r}), or connect the model in ComfyUI"
                )


def _any_share_nothing(loras: Sequence[Lora]) -> bool:
    """True if two of the LoRAs have no layer of the denoiser in common."""
    parts = [{name for name in lora.layers if not name.startswith("text_encoder")} for lora in loras]
    return any(a.isdisjoint(b) for i, a in enumerate(parts) for b in parts[i + 1 :])
