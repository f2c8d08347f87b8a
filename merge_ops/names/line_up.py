"""Lining up the layers of several LoRAs by name, or refusing to where their names differ in structure.

Two spellings of one path (``lora_unet_blocks_0_attn_q``, ``transformer.blocks.0.attn.q``) are brought to one
name here. Names of another structure, such as diffusers' split q, k and v and the fused qkv of a model's
authors, are not: those need ``load(path, architecture=...)``, or a model that knows both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from ..errors import IncompatibleLoraError
from ..lora import Layer, Lora, WholeWeight
from .language import current_wrappers, split_wrappers
from .parts import DENOISERS, flat_name
from .recognise import Guess, guess
from .spelling import DOTTED_COMPONENTS

_VERSIONS = (
    "its layers have the names of another version of transformers; they are taken for the same modules of "
    "one model, and are saved under the newer names"
)
T = TypeVar("T", Layer, WholeWeight)
_FLAT_PREFIX = ("lora_", "lycoris_", "model_")  # in a name without dots, only these can end a prefix


def name_alike(loras: Sequence[Lora]) -> list[Lora]:
    """Give each path one name in all LoRAs, the one with most dots, however their files spell it.

    Of two with as many, that is ComfyUI's own: ``unet`` in kohya's names may be any denoiser. Modules of
    language models get the name that the newest version of transformers has among them.

    Raises:
        IncompatibleLoraError: if one LoRA has a layer in two spellings.
    """
    loras = _use_current_names(loras)
    names: dict[str, set[str]] = {}
    for lora in loras:
        for name in (*lora.layers, *lora.whole_weights):
            names.setdefault(flat_name(name), set()).add(name)
    common = {
        name: max(alike, key=lambda other: (other.count("."), other.startswith("diffusion_model."), other))
        for alike in names.values()
        if len(alike) > 1
        for name in alike
    }
    return [_rename(lora, common) for lora in loras]


def _use_current_names(loras: Sequence[Lora]) -> list[Lora]:
    """Rename the modules of language models where the LoRAs have names of several versions.

    Raises:
        IncompatibleLoraError: if one LoRA has names of two versions, so that they may be two models in one.
    """
    splits = [
        {name: parts for name in (*lora.layers, *lora.whole_weights) if (parts := split_wrappers(name))}
        for lora in loras
    ]
    own = [{(part, wrappers) for part, wrappers, _ in split.values()} for split in splits]
    if len(loras) < 2 or all(each == own[0] for each in own):
        return list(loras)
    found: dict[str, set[str]] = {}
    for part, wrappers in set[tuple[str, str]]().union(*own):
        found.setdefault(part, set()).add(wrappers)
    current = {part: current_wrappers(part, each) for part, each in found.items() if len(each) > 1}
    for lora, each in zip(loras, own, strict=True):
        for part in current:
            twice = sorted(wrappers for other, wrappers in each if other == part)
            if len(twice) > 1:
                raise IncompatibleLoraError(
                    f"{lora.name} has layers under {twice[0]!r} and under {twice[1]!r}, and another LoRA "
                    "has them under one of these only, so it is not known which belong together; rename them"
                )
    names = [
        {name: current[part] + path for name, (part, _, path) in split.items() if part in current}
        for split in splits
    ]
    renamed = [_rename(lora, new) for lora, new in zip(loras, names, strict=True)]
    return [
        each if each is lora else replace(each, warnings=(*each.warnings, _VERSIONS))
        for each, lora in zip(renamed, loras, strict=True)
    ]


def _rename(lora: Lora, common: dict[str, str]) -> Lora:
    layers = {common.get(name, name): _under(layer, name, common) for name, layer in lora.layers.items()}
    whole = {common.get(name, name): _under(each, name, common) for name, each in lora.whole_weights.items()}
    if layers.keys() == lora.layers.keys() and whole.keys() == lora.whole_weights.keys():
        return lora
    if len(layers) < len(lora.layers) or len(whole) < len(lora.whole_weights):
        raise IncompatibleLoraError(f"{lora.name} has one layer in two spellings; keep one of them")
    return replace(lora, layers=layers, whole_weights=whole, origin=lora.origin or lora)


def _under(held: T, name: str, common: dict[str, str]) -> T:
    """The same thing with the key that its new name has in a PEFT folder, if its key is such a one."""
    new, path = common.get(name, name), f"base_model.model.{name}"
    if new == name or not held.key.startswith(path) or split_wrappers(name) is None:
        return held
    key = f"base_model.model.{new}{held.key[len(path) :]}"
    return held.changed(key=key) if isinstance(held, Layer) else replace(held, key=key)


def check_structure(loras: Sequence[Lora], given: Sequence[Lora] = ()) -> None:
    """Refuse to merge two LoRAs for one model whose names differ in structure, or in an unknown prefix.

    ``given`` is what they were before their names were lined up. If both came straight from files they are
    refused even if they share some layers; a model may have given others the names of its weights.

    Raises:
        IncompatibleLoraError: the message names both and says what to do.
    """
    share_nothing = _any_share_nothing(loras)
    fresh = [lora.origin is None for lora in given] or [False] * len(loras)
    if not share_nothing and sum(fresh) < 2:
        return
    guesses = [guess(lora) for lora in loras]
    for i, a in enumerate(loras):
        for j in range(i + 1, len(loras)):
            if share_nothing:
                _refuse_unknown_prefix(a, loras[j])
                _refuse_unknown_prefix(loras[j], a)
            if share_nothing or (fresh[i] and fresh[j]):
                _refuse_other_structure((a, guesses[i]), (loras[j], guesses[j]))


def _refuse_other_structure(a: tuple[Lora, Guess | None], b: tuple[Lora, Guess | None]) -> None:
    (lora_a, guess_a), (lora_b, guess_b) = a, b
    if guess_a is None or guess_b is None or guess_a.name != guess_b.name:
        return
    if guess_a.structure != guess_b.structure:
        original, diffusers = (lora_a, lora_b) if guess_a.structure == "original" else (lora_b, lora_a)
        raise IncompatibleLoraError(
            f"{original.name} uses the layer names of {guess_a.title}'s authors and {diffusers.name} those "
            "of diffusers, so not every layer of one would meet its layer of the other; read both with "
            f"load(path, architecture={guess_a.name!r}), or connect the model in ComfyUI"
        )


def _refuse_unknown_prefix(longer: Lora, shorter: Lora) -> None:
    """Refuse LoRAs of which one has the other's names with something unknown in front of them."""
    names, known = _paths(longer), {path.replace(".", "_") for path in _paths(shorter)}
    if not known or not known.isdisjoint(name.replace(".", "_") for name in names):
        return
    prefixes: Counter[str] = Counter()
    for name in names:
        mark = "." if "." in name else "_"
        parts = name.split(mark)
        for i in range(1, len(parts)):
            if "_".join(parts[i:]) in known:
                prefixes[mark.join(parts[:i]) + mark] += 1
    for prefix, count in prefixes.most_common(1):
        is_flat = not prefix.endswith(".")
        if 2 * count > min(len(names), len(known)) and (not is_flat or prefix.endswith(_FLAT_PREFIX)):
            raise IncompatibleLoraError(
                f"{longer.name} has {prefix!r} in front of names that {shorter.name} has without it, so no "
                "layer of one would meet a layer of the other; if both are for one model, take that prefix "
                "out of the keys"
            )


def _paths(lora: Lora) -> set[str]:
    """The names of the denoiser's layers, or of a model's by itself, without their component."""
    split = ((name, *name.partition(".")) for name in lora.layers)
    return {
        path if head in DENOISERS else name
        for name, head, _, path in split
        if head in DENOISERS or head not in DOTTED_COMPONENTS
    }


def _any_share_nothing(loras: Sequence[Lora]) -> bool:
    """True if two of the LoRAs have no layer of the denoiser in common."""
    parts = [{name for name in lora.layers if not name.startswith("text_encoder")} for lora in loras]
    return any(a.isdisjoint(b) for i, a in enumerate(parts) for b in parts[i + 1 :])
