"""One name for each weight that LoRAs change, whatever each of them calls it."""

from __future__ import annotations

from ....merge_ops.errors import IncompatibleLoraError
from ....merge_ops.names.parts import is_text
from ....merge_ops.names.spelling import kohya_name
from ..target import LoraTargets, Target

Spellings = dict[Target, list[str]]  # a weight -> the names that ComfyUI's maps have for it


def list_spellings(key_map: dict[str, Target]) -> Spellings:
    """List the names of each target of a key map."""
    spellings: Spellings = {}
    for spelling, target in key_map.items():
        spellings.setdefault(target, []).append(spelling)
    return spellings


def name_weights(loras: list[LoraTargets], spellings: Spellings) -> dict[Target, str]:
    """Choose one name for each weight: the first, in order, of those that the LoRAs give it.

    Raises:
        IncompatibleLoraError: if a LoRA changes a weight twice, or one name would stand for two weights.
    """
    names: dict[Target, str] = {}
    for one in loras:
        if len(set(one.layers.values())) < len(one.layers):
            raise IncompatibleLoraError(
                f"{one.lora.name} changes one weight of this model both as a whole and in slices; keep only "
                "one of the two"
            )
        for layer, target in one.layers.items():
            name = _tell_part(layer, target, spellings)
            names[target] = min(names.get(target, name), name)
    if len(set(names.values())) < len(names):
        raise IncompatibleLoraError(
            "the LoRAs use one name for different weights of this model; merge them separately"
        )
    for one in loras:
        names |= {target: names.get(target, name) for name, target in one.whole_weights.items()}
    return names


def choose_stem(name: str, target: Target, spellings: Spellings) -> str:
    """Choose, among the spellings that ComfyUI knows, the one that most other tools know too."""
    known = spellings.get(target.weight, [])
    module = name.removesuffix(".bias")
    usual = (kohya_name(module, single_text_encoder=True), kohya_name(module), module)
    return next((spelling for spelling in usual if spelling in known), (*known, module)[0])


def _tell_part(name: str, target: Target, spellings: Spellings) -> str:
    """Return the name, or another one if it does not tell text encoder and diffusion model apart.

    ``layers.0.self_attn.q_proj`` may be in either, and the strengths of the two differ.
    """
    bias = ".bias" if name.endswith(".bias") else ""
    known = (f"{spelling}{bias}" for spelling in spellings.get(target.weight, ()))
    usual = (name, f"model.{name}", *known, f"diffusion_model.{name}", f"text_encoders.{name}")
    return next(spelling for spelling in usual if is_text(spelling) != target.is_denoiser)
