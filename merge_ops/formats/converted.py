"""Reading a LoRA, under the names of diffusers' modules if asked, which diffusers' own converters give it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import LoraFormatError, ParameterError, did_you_mean
from ..lora import Layer, Lora, LowRank
from ..names.architecture import Converter
from ..names.architectures import BY_NAME, TITLES
from ..names.original import add_dots
from ..names.parts import flat_name
from ..names.recognise import guess
from .flux_control import is_input, norm_of_diffusers
from .read import load as read
from .state_dict import from_tensors

_AUTO = "auto"
_BROKEN = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_LOST = 1e-3  # of the squared norm; converters only rename, split and reorder


def load(
    path: str | os.PathLike[str],
    architecture: str | None = None,
    *,
    adapter: str | None = None,
    allow_pickle: bool = False,
) -> Lora:
    """Read one LoRA from a ``.safetensors`` file or a PEFT folder.

    >>> lora = merge_ops.load("ink.safetensors")
    >>> lora.name, lora.rank, len(lora.layers)
    ('ink', 4, 2)

    The spelling of the keys does not matter: layers get canonical names, and the scale of each is resolved
    (``alpha / rank``, rsLoRA, patterns, metadata). Adapters in the file that cannot be merged are listed in
    ``unmerged``.

    Args:
        path: the file or folder.
        architecture: the model whose diffusers names the layers get: ``flux``, ``wan``, ... or ``auto`` to
            guess it. For files with the names of the model's authors (kohya, XLabs, musubi, ComfyUI). Needs
            diffusers, which has the converters. By default names keep their structure.
        adapter: which one to read, of a file whose keys name several (``x.lora_A.style.weight``).
        allow_pickle: also read .pt, .bin, .ckpt and .pth files, with torch's own reader of plain tensors,
            which runs no code from the file (``weights_only=True``). Otherwise nothing is ever unpickled.

    Raises:
        LoraFormatError: if the path cannot be read as a LoRA, or its names cannot be converted; the message
            names the file and says what to do.
        ParameterError: if there is no such architecture.
    """
    if architecture is not None and architecture not in (_AUTO, *TITLES):
        known = (_AUTO, *TITLES)
        raise ParameterError(f"there is no architecture {architecture!r}{did_you_mean(architecture, known)}")
    lora = read(path, allow_pickle, adapter)
    if architecture is None:
        return lora
    if architecture == _AUTO:
        guessed = guess(lora)
        return lora if guessed is None else as_diffusers_names(lora, guessed.name)
    return as_diffusers_names(lora, architecture)


def alike_by_diffusers(loras: Sequence[Lora]) -> list[Lora]:
    """Give LoRAs diffusers' names where files for one model differ in structure; return others unchanged.

    Raises:
        LoraFormatError: if diffusers is needed for that and is not installed, or cannot convert a file.
    """
    guesses = [guess(lora) for lora in loras]
    structures: dict[str, set[str]] = {}
    for guessed in guesses:
        if guessed is not None:
            structures.setdefault(guessed.name, set()).add(guessed.structure)
    return [
        as_diffusers_names(lora, guessed.name) if guessed and len(structures[guessed.name]) > 1 else lora
        for lora, guessed in zip(loras, guesses, strict=True)
    ]


def as_diffusers_names(lora: Lora, architecture: str) -> Lora:
    """Return the LoRA with the denoiser's layers under the names of diffusers' modules.

    Raises:
        LoraFormatError: if diffusers is not installed, has no converter, or loses a part of the file.
    """
    guessed = guess(lora)
    if guessed is not None and guessed.structure == "diffusers":
        return lora
    title = TITLES[architecture]
    text = {name: layer for name, layer in lora.layers.items() if name.startswith("text_encoder")}
    denoiser = {name: layer for name, layer in lora.layers.items() if name not in text}
    other = sorted({layer.kind for layer in denoiser.values() if not isinstance(layer, LowRank)})
    if other:
        raise LoraFormatError(
            f"{lora.name}: only plain LoRA layers can be given diffusers' names of {title}, and it has "
            f"{', '.join(other)}"
        )
    biases = {name: layer for name, layer in denoiser.items() if name.endswith(".bias")}
    weights = {name: layer for name, layer in denoiser.items() if name not in biases}
    converted = _convert(lora, weights, architecture, title) if weights else {}
    if biases:
        converted |= _convert_biases(lora, biases, architecture, title)
    return replace(
        lora,
        layers=text | _widened_alike(converted, denoiser),
        whole_weights={norm_of_diffusers(name): weight for name, weight in lora.whole_weights.items()},
        dialect="diffusers",
        origin=lora.origin or lora,
    )


def _convert_biases(lora: Lora, biases: dict[str, Layer], architecture: str, title: str) -> dict[str, Layer]:
    """Convert biases as if they were weights of one column, which are renamed and cut alike."""
    columns = {name.removesuffix(".bias"): layer.changed(layout="linear") for name, layer in biases.items()}
    found = _convert(lora, columns, architecture, title)
    return {f"{name}.bias": layer.changed(layout="vector") for name, layer in found.items()}


def _widened_alike(converted: dict[str, Layer], before: dict[str, Layer]) -> dict[str, Layer]:
    """Mark the input layer as one that widens the model's, if it was marked before."""
    if not any(layer.padded_to for layer in before.values()):
        return converted
    return {
        name: layer.changed(padded_to=layer.weight_shape) if is_input(name) else layer
        for name, layer in converted.items()
    }


def _convert(lora: Lora, denoiser: dict[str, Layer], architecture: str, title: str) -> dict[str, Layer]:
    converter = BY_NAME[architecture].converter
    if converter is None:
        raise LoraFormatError(
            f"{lora.name}: diffusers has no converter for the original names of {title}; merge it in ComfyUI "
            "with the model connected"
        )
    spelled = _spell_for(converter, denoiser)
    try:
        result = from_tensors(lora.name, _pipeline(converter.pipeline).lora_state_dict(spelled))
    except ImportError as error:
        raise LoraFormatError(
            f"{lora.name} uses the layer names of {title}'s authors; to read it under diffusers' names, "
            "install diffusers and peft"
        ) from error
    except _BROKEN as error:
        raise LoraFormatError(
            f"{lora.name}: diffusers cannot convert its names of {title} ({error!r:.200})"
        ) from error
    before, after = _energy(denoiser), _energy(result.layers)
    guessed = guess(result)
    if abs(before - after) > _LOST * before or guessed is None or guessed.structure != "diffusers":
        raise LoraFormatError(
            f"{lora.name}: diffusers' converter for {title} leaves out a part of it; merge it in ComfyUI "
            "with the model connected"
        )
    return {_with_component(name): layer for name, layer in result.layers.items()}


def _with_component(name: str) -> str:
    """The name with its component, which the converter of Flux leaves out for its input and output layers."""
    outer = ("x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out")
    return f"transformer.{name}" if name.startswith(outer) else name


def _pipeline(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)


def _energy(layers: dict[str, Layer]) -> float:
    """Sum of the squares of all entries of all deltas, from the factors."""
    total = 0.0
    for layer in layers.values():
        if isinstance(layer, LowRank):
            up, down = layer.factors(torch.device("cpu"))
            total += float(((up.T @ up) * (down @ down.T)).sum())
    return total


def _pair(layer: Layer) -> tuple[Tensor, Tensor]:
    """Up and down with the scale folded in; as stored if it is 1."""
    assert isinstance(layer, LowRank)
    if layer.scale == 1:
        return layer.up, layer.down
    return layer.factors(None)


def _spell_for(converter: Converter, layers: dict[str, Layer]) -> dict[str, Tensor]:
    """Spell layers as diffusers' converter reads them best."""
    if converter.spelling == "kohya":
        return _spell_as_kohya(layers)
    return _spell_with_dots(layers, converter.renames)


def _spell_as_kohya(layers: dict[str, Layer]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        up, down = _pair(layer)
        stem = f"lora_unet_{flat_name(name)}"
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        tensors[f"{stem}.alpha"] = torch.tensor(float(down.shape[0]))
    return tensors


def _spell_with_dots(layers: dict[str, Layer], renames: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        up, down = _pair(layer)
        stem = f"diffusion_model.{add_dots(name)}"
        for pattern, replacement in renames:
            stem = re.sub(pattern, replacement, stem)
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    return tensors
