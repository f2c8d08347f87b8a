"""The tensors of a file in one of the formats that we write, and their keys.

Every scale is folded into the factors before this point, so each format expresses "scale 1" in its own way:
kohya keys carry ``alpha = rank``; a PEFT configuration has ``lora_alpha = r``, with patterns where ranks
differ; diffusers' keys carry nothing, because some of its converters refuse an alpha. Kohya files then have
one alpha for all layers and the rest of the scale in the factors, because diffusers applies the most common
alpha to all attention layers.
"""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor

from ..adapters.configuration import CONFIGURATION
from ..errors import MergeError
from ..formats.experts import expert_of
from ..formats.flux_control import is_norm_of_diffusers
from ..formats.tokens import KEY as TOKENS_KEY
from ..formats.tokens import ONLY_KEY as TOKENS_ONLY_KEY
from ..lora import Lora, LowRank, WholeWeight
from .experts import stacked
from .stems import component_of, has_kohya_name

_AUTO = {
    "kohya": "kohya",
    "diffusers": "diffusers",
    "peft-keys": "diffusers",
    "peft": "peft",
}


def resolve_format(asked: str, first: Lora) -> str:
    """Return the format to write; ``auto`` is that of the first LoRA, or kohya if that one is read-only.

    Generic names of an LDM UNet count as read-only, since ComfyUI would not find them in a diffusers UNet.
    """
    if asked == "auto" and first.dialect == "generic":
        return "diffusers" if any(map(_is_generic, first.layers)) else "kohya"
    if asked != "auto":
        return asked
    form = _AUTO.get(first.dialect, "kohya")
    return "diffusers" if form == "kohya" and not all(map(has_kohya_name, first.layers)) else form


def file_tensors(layers: dict[str, LowRank], stems: dict[str, str], form: str) -> dict[str, Tensor]:
    """Return the tensors to write, by key.

    Layers have scale 1, or in the kohya format one common alpha divided by their rank.

    Raises:
        MergeError: if the format has no key for one of the layers.
    """
    down, up = (
        (".lora_down.weight", ".lora_up.weight") if form == "kohya" else (".lora_A.weight", ".lora_B.weight")
    )
    experts = {stems[name]: layer for name, layer in layers.items() if expert_of(name)}
    if experts and form != "peft":
        raise MergeError(
            f"{next(iter(experts))} is a layer of an expert, which {form} files cannot hold; "
            "use format='peft'"
        )
    tensors = stacked(experts)
    for name, layer in layers.items():
        stem = stems[name]
        if stem in experts:
            continue
        if layer.layout == "vector":
            tensors[_key_of_vector(name, stem, form, layers)] = layer.up.flatten()
            continue
        if layer.layout == "embedding":
            tensors[f"{stem}.lora_embedding_A"], tensors[f"{stem}.lora_embedding_B"] = layer.down, layer.up
            continue
        if layer.layout == "fan_in_fan_out" and form != "peft":
            raise MergeError(
                f"{name} is stored transposed, which {form} files cannot express; use format='peft'"
            )
        tensors[stem + down], tensors[stem + up] = _file_shapes(layer)
        if layer.padded_to and not (form == "diffusers" and name.endswith(".x_embedder")):
            # diffusers widens an x_embedder by itself
            if form != "kohya" and not _is_generic(name):
                raise MergeError(
                    f"{name} widens the base model's weight, which only format='kohya' can express"
                )
            tensors[f"{stem}.reshape_weight"] = torch.tensor(layer.padded_to)
        if form == "kohya":
            tensors[f"{stem}.alpha"] = torch.tensor(layer.scale * layer.rank, dtype=torch.float32)
    return tensors


def whole_weight_tensors(
    whole_weights: dict[str, WholeWeight], stems: dict[str, str], form: str, layers: Container[str] = ()
) -> dict[str, Tensor]:
    """Return the tensors of whole weights, by key.

    Raises:
        MergeError: if the format has no key for one of them.
    """
    tensors = {}
    for name, weight in whole_weights.items():
        if weight.why == CONFIGURATION:
            if form == "peft" or (form == "diffusers" and not _is_generic(name)):
                raise MergeError(
                    f"{name} is {weight.why}, which a {form} file cannot hold; use format='kohya'"
                )
            tensors[weight.key] = weight.value  # ComfyUI knows it by the model's own name only
            continue
        last = "bias" if name.endswith(".bias") else "weight"
        if weight.rows and form != "peft":
            raise MergeError(f"{name} is {weight.why}, which a {form} file cannot hold; use format='peft'")
        if weight.rows:
            key = stems[name] + (TOKENS_KEY if layers else TOKENS_ONLY_KEY)
        elif form == "peft" and weight.is_vocabulary and name in layers:
            key = f"{stems[name]}.base_layer.{last}"  # where PEFT puts a LoRA on a resized embedding
        elif form == "peft":
            own = weight.key.startswith("base_model.model.") and weight.key.endswith(f".{last}")
            own = own and not (weight.is_vocabulary and ".base_layer." in weight.key)
            key = weight.key if own else f"{stems[name]}.{last}"
        elif last == "weight" and (form == "kohya" or _is_generic(name)):
            key = f"{stems[name]}.set_weight"
        elif last == "weight" and is_norm_of_diffusers(name):
            key = f"{stems[name]}.weight"
        else:
            raise MergeError(f"{name} is {weight.why}, which a {form} file cannot hold; use format='peft'")
        tensors[key] = weight.value
    return tensors


def matrices_of(layers: dict[str, LowRank]) -> dict[str, LowRank]:
    """Return the layers that a file holds as pairs of factors; the others are biases and norm weights."""
    return {name: layer for name, layer in layers.items() if layer.layout != "vector"}


def _key_of_vector(name: str, stem: str, form: str, layers: dict[str, LowRank]) -> str:
    is_bias = name.endswith(".bias")
    if form == "kohya" or (form == "diffusers" and _is_generic(name)):
        return f"{stem}.diff_b" if is_bias else f"{stem}.diff"
    if is_bias and name.removesuffix(".bias") in layers:
        return f"{stem}.lora_B.bias"
    what = "the bias of a module without a LoRA" if is_bias else "the weight of a norm"
    raise MergeError(f"{name} is {what}, which a {form} file cannot hold; use format='kohya'")


def _file_shapes(layer: LowRank) -> tuple[Tensor, Tensor]:
    """Return ``(down, up)`` in the shapes that trainers write, with kernel dimensions for a convolution."""
    if not layer.kernel:
        return layer.down, layer.up
    ones = (1,) * len(layer.kernel)
    return layer.down.reshape(layer.rank, -1, *layer.kernel), layer.up.reshape(*layer.up.shape, *ones)


def _is_generic(name: str) -> bool:
    return component_of(name) == "diffusion_model"
