"""Reading a LoRA under the names of diffusers' modules, by diffusers' own converters."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import LoraFormatError, ParameterError, did_you_mean
from ..lora import Layer, Lora, LowRank
from ..names.architectures import TITLES, flat_name, guess
from .read import load as read
from .state_dict import from_tensors

_AUTO = "auto"
_BROKEN = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_LOST = 1e-3  # of the squared norm; converters only rename, split and reorder

# the words of original names, to put the dots back into kohya's
_WORDS = """double_blocks single_blocks img_attn txt_attn img_mlp txt_mlp img_mod txt_mod modulation qkv proj
lin linear1 linear2 double_stream_modulation_img double_stream_modulation_txt single_stream_modulation img_in
txt_in time_in guidance_in vector_in in_layer out_layer final_layer linear adaLN_modulation blocks self_attn
cross_attn ffn k_img v_img q k v o text_embedding time_embedding time_projection head img_emb layers
noise_refiner context_refiner attention out feed_forward w1 w2 w3 individual_token_refiner t_embedder
c_embedder input_embedder mlp x_embedder cap_embedder fc1 fc2""".split()
_WORD = re.compile(rf"({'|'.join(sorted([*_WORDS, '[0-9]+'], key=len, reverse=True))})(?:_|$)")


def load(
    path: str | os.PathLike[str], architecture: str | None = None, *, allow_pickle: bool = False
) -> Lora:
    """Read one LoRA from a ``.safetensors`` file or a PEFT folder.

    >>> lora = merge_ops.load("ink.safetensors")
    >>> lora.name, lora.rank, len(lora.layers)
    ('ink', 4, 2)

    The spelling of the keys does not matter: layers have canonical names, and the scale of each is resolved
    (``alpha / rank``, rsLoRA, patterns, metadata). Other kinds of adapters in the file are listed in
    ``unmerged``.

    Args:
        path: of the file or folder.
        architecture: name the layers as diffusers names the modules of this model, for files that use the
            names of the model's authors (kohya, XLabs, musubi, ComfyUI): ``flux``, ``wan``, ... or ``auto``
            to guess it. Needs diffusers, whose converters do it. By default names keep their structure.
        allow_pickle: read .pt, .bin, .ckpt and .pth files too: by torch's own reader of plain tensors, which
            runs no code from the file (``weights_only=True``). Otherwise nothing is ever unpickled.

    Raises:
        LoraFormatError: if the path cannot be read as a LoRA, or not under such names; the message names the
            file and what to do.
        ParameterError: if there is no such architecture.
    """
    if architecture is not None and architecture not in (_AUTO, *TITLES):
        known = (_AUTO, *TITLES)
        raise ParameterError(f"there is no architecture {architecture!r}{did_you_mean(architecture, known)}")
    lora = read(path, allow_pickle)
    if architecture is None:
        return lora
    if architecture == _AUTO:
        found = guess(lora)
        return lora if found is None else as_diffusers_names(lora, found.name)
    return as_diffusers_names(lora, architecture)


def alike_by_diffusers(loras: Sequence[Lora]) -> list[Lora]:
    """The LoRAs as they are, or under diffusers' names where files of one model differ in structure.

    Raises:
        LoraFormatError: if diffusers is needed for that and is not there, or cannot convert a file.
    """
    guesses = [guess(lora) for lora in loras]
    structures: dict[str, set[str]] = {}
    for found in guesses:
        if found is not None:
            structures.setdefault(found.name, set()).add(found.structure)
    return [
        as_diffusers_names(lora, found.name) if found and len(structures[found.name]) > 1 else lora
        for lora, found in zip(loras, guesses, strict=True)
    ]


def as_diffusers_names(lora: Lora, architecture: str) -> Lora:
    """The LoRA with the denoiser's layers under the names of diffusers' modules.

    Raises:
        LoraFormatError: if diffusers is not installed, has no converter, or loses a part of the file.
    """
    found = guess(lora)
    if found is not None and found.structure == "diffusers":
        return lora
    title = TITLES[architecture]
    text = {name: layer for name, layer in lora.layers.items() if name.startswith("text_encoder")}
    own = {name: layer for name, layer in lora.layers.items() if name not in text}
    other = sorted({type(layer).__name__ for layer in own.values() if not isinstance(layer, LowRank)})
    if other:
        raise LoraFormatError(
            f"{lora.name}: only plain LoRA layers can be brought to diffusers' names of {title}, and it has "
            f"{', '.join(other)}"
        )
    converted = _converted(lora, own, architecture, title)
    return replace(lora, layers=text | converted, dialect="diffusers", origin=lora.origin or lora)


def _converted(lora: Lora, own: dict[str, Layer], architecture: str, title: str) -> dict[str, Layer]:
    converter, spelled = _CONVERTERS.get(architecture, (None, None))
    if converter is None or spelled is None:
        raise LoraFormatError(
            f"{lora.name}: diffusers has no converter for the original names of {title}; merge it in ComfyUI "
            "with the model connected"
        )
    try:
        result = from_tensors(lora.name, _pipeline(converter).lora_state_dict(spelled(own)))
    except ImportError as error:
        raise LoraFormatError(
            f"{lora.name} names the layers of {title} as its authors do; to read it under diffusers' names, "
            "install diffusers and peft"
        ) from error
    except _BROKEN as error:
        raise LoraFormatError(
            f"{lora.name}: diffusers cannot convert its names of {title} ({error!r:.200})"
        ) from error
    before, after = _energy(own), _energy(result.layers)
    named = guess(result)
    if abs(before - after) > _LOST * before or named is None or named.structure != "diffusers":
        raise LoraFormatError(
            f"{lora.name}: diffusers' converter for {title} leaves out a part of it; merge it in ComfyUI "
            "with the model connected"
        )
    return result.layers


def _pipeline(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)


def _energy(layers: dict[str, Layer]) -> float:
    """Sum of the squares of all deltas, from the factors."""
    total = 0.0
    for layer in layers.values():
        if isinstance(layer, LowRank):
            up, down = layer.factors(torch.device("cpu"))
            total += float(((up.T @ up) * (down @ down.T)).sum())
    return total


def _pair(layer: Layer) -> tuple[Tensor, Tensor]:
    """Up and down with the scale folded in, exactly as stored where it is 1."""
    assert isinstance(layer, LowRank)
    if layer.scale == 1:
        return layer.up, layer.down
    return layer.factors(None)


def _kohya(layers: dict[str, Layer]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        up, down = _pair(layer)
        stem = f"lora_unet_{flat_name(name)}"
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        tensors[f"{stem}.alpha"] = torch.tensor(float(down.shape[0]))
    return tensors


def _dotted(layers: dict[str, Layer]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        up, down = _pair(layer)
        stem = f"diffusion_model.{_with_dots(name)}"
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    return tensors


def _tencent(layers: dict[str, Layer]) -> dict[str, Tensor]:
    """HunyuanVideo's own names, which ComfyUI's differ from."""
    tensors = {}
    for key, tensor in _dotted(layers).items():
        key = re.sub(r"_attn\.(qkv|proj)\.", r"_attn_\1.", key)
        key = re.sub(r"(_mod|\.modulation)\.lin\.", r"\1.linear.", key)
        key = re.sub(r"_mlp\.0\.", "_mlp.fc1.", re.sub(r"_mlp\.2\.", "_mlp.fc2.", key))
        tensors[key] = tensor
    return tensors


def _with_dots(name: str) -> str:
    """The original path of a layer, with the dots that kohya's spelling has not."""
    component, _, path = name.partition(".")
    path = path if component in ("unet", "transformer", "diffusion_model") else name
    if "." in path:
        return path
    words = [found[1] for found in _WORD.finditer(path)]
    return ".".join(words) if "_".join(words) == path else path


# diffusers' pipeline whose ``lora_state_dict`` converts, and the spelling that it reads best
_CONVERTERS: dict[str, tuple[str, Callable[[dict[str, Layer]], dict[str, Tensor]]]] = {
    "flux": ("FluxPipeline", _kohya),
    "flux2": ("Flux2Pipeline", _dotted),
    "wan": ("WanPipeline", _dotted),
    "hunyuan": ("HunyuanVideoPipeline", _tencent),
    "lumina2": ("Lumina2Pipeline", _dotted),
    "zimage": ("ZImagePipeline", _kohya),
}
