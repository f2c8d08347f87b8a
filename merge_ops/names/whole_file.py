"""Names that only the whole file explains: without a part of a pipeline, or with words in front of them.

``transformer_blocks.0.attn.to_q`` alone could be of anything; beside others it is a layer of Qwen-Image. And
``transformer.`` is a prefix in front of one model's layers and a module of another.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from .architecture import Sized
from .families import UNET
from .parts import DENOISERS, flat_path, is_language_model
from .prefixes import starts
from .recognise import guess_from, is_known, structure_of
from .spelling import DOTTED_COMPONENTS, canonical_name

_UNET = re.compile(UNET.patterns["diffusers"])


def settle_names(names: Iterable[str], layers: Mapping[str, Sized]) -> dict[str, str]:
    """Return new names for those that need them: without stacked prefixes, and with a component.

    Args:
        names: canonical names of everything in a file.
        layers: those that have widths, by the same names.
    """
    places = {
        name: parts for name in names if not (parts := component_and_path(name))[0] or parts[0] in DENOISERS
    }
    stacked = {prefix for _, path in places.values() if (prefix := _stacked_prefix(path))}
    # "model.layers.0" is a language model's, unless its other layers show that "model." is a prefix
    places = {
        name: (part, path)
        for name, (part, path) in places.items()
        if not is_language_model(name) or path.startswith(tuple(stacked))
    }
    if not stacked and all(part for part, _ in places.values()):
        return {}
    is_flat = not any("." in path for _, path in places.values())
    settled = {}
    for name, (part, path) in places.items():
        prefix = max((prefix for prefix in stacked if path.startswith(prefix)), key=len, default="")
        settled[name] = _join(part, path[len(prefix) :], is_flat) if prefix else name
    widths = {settled[name]: layer for name, layer in layers.items() if name in settled}
    part = _part_of_all(settled.values(), widths)
    for name, new in settled.items():
        if part and not component_and_path(new)[0]:
            settled[name] = _join(part, new, is_flat)
    return {name: new for name, new in settled.items() if new != name}


def _part_of_all(names: Collection[str], layers: Mapping[str, Sized]) -> str:
    """The component that readers look for in front of the names; nothing if the model is unknown."""
    structure = structure_of(names)
    if structure is None:
        return ""
    if any(_UNET.match(flat_path(name)) for name in names):
        return "unet"
    if structure == "original":
        return "diffusion_model"
    found = guess_from(names, layers)
    return "transformer" if found is None else found.architecture.component


def component_and_path(name: str) -> tuple[str, str]:
    """Return the part of a pipeline that a name begins with, or nothing, and the path inside it."""
    part, dot, path = name.partition(".")
    return (part, path) if dot and part in DOTTED_COMPONENTS else ("", name)


def _stacked_prefix(path: str) -> str:
    """The words in front of a layer that is known, as few as possible; nothing if there are none."""
    places = starts(path)
    if len(places) == 1:
        return ""
    flat = path.replace(".", "_")
    return next((path[:place] for place in places if is_known(flat[place:])), "")


def _join(part: str, path: str, is_flat: bool) -> str:
    """A canonical name from its parts."""
    if not part:
        return canonical_name(path)
    if is_flat:
        return canonical_name(f"lora_{'transformer' if part == 'transformer' else 'unet'}_{path}")
    return canonical_name(f"{part}.{path}")
