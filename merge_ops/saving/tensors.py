"""The tensors of a file in one of the formats that we write, and their keys.

Every scale is folded into the factors before this point, so each format expresses "scale 1" in its own way:
kohya and generic keys carry ``alpha = rank``; a PEFT configuration has ``lora_alpha = r``, with patterns
where ranks differ. Kohya files then have one alpha for all layers and the rest of the scale in the factors,
because diffusers applies the most common alpha to all attention layers.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

import torch
from torch import Tensor

from ..adapters.configuration import CONFIGURATION
from ..errors import MergeError
from ..formats.experts import expert_of
from ..formats.flux_control import is_norm_of_diffusers
from ..formats.tokens import KEY as TOKENS_KEY
from ..formats.tokens import ONLY_KEY as TOKENS_ONLY_KEY
from ..lora import Lora, LowRank, WholeWeight
from ..names.parts import is_language_model
from ..names.recognise import Guess, guess
from ..names.spelling import DOTTED_COMPONENTS, KOHYA_COMPONENTS, kohya_name
from .experts import stacked

FORMATS = ("kohya", "diffusers", "peft")
_AUTO = {
    "kohya": "kohya",
    "diffusers": "diffusers",
    "peft-keys": "diffusers",
    "peft": "peft",
}
_FLAT = re.compile(r"^[^.]*_\d+_[^.]*$")  # a path in kohya's spelling
_LDM_STEMS = ("lora_unet_input_blocks_", "lora_unet_output_blocks_")


def resolve_format(asked: str, first: Lora) -> str:
    """Return the format to write; ``auto`` is that of the first LoRA, or kohya if that one is read-only.

    Generic names of an LDM UNet count as read-only, since ComfyUI would not find them in a diffusers UNet.
    """
    if asked == "auto" and first.dialect == "generic":
        return "diffusers" if any(map(_is_generic, first.layers)) else "kohya"
    if asked != "auto":
        return asked
    form = _AUTO.get(first.dialect, "kohya")
    return "diffusers" if form == "kohya" and not all(map(_has_kohya_name, first.layers)) else form


def module_names(layers: Iterable[str], form: str, loras: list[Lora]) -> dict[str, str]:
    """Return the stem of each layer's keys in the file; a bias is written under its module.

    Raises:
        MergeError: if the format cannot hold the layers of these models together.
    """
    names = list(layers)
    modules = list(dict.fromkeys(name.removesuffix(".bias") for name in names))
    stems = _stems(modules, form, loras)
    return {name: stems[name.removesuffix(".bias")] for name in names}


def _stems(names: list[str], form: str, loras: list[Lora]) -> dict[str, str]:
    spelled = _spelled_in_peft_folders(loras)
    components = {_component_in(name, spelled) for name in names}
    if form == "peft":
        if len(components) > 1:
            parts = ", ".join(sorted(part or "a text model" for part in components))
            raise MergeError(
                f"a PEFT folder is for one model, but the merge has layers of {parts}; use format='kohya'"
            )
        return {
            name: spelled.get(name, f"base_model.model.{without_component(name, component_of(name))}")
            for name in names
        }
    _refuse_unnamed(names, form, spelled)
    if form == "diffusers":
        return {name: name for name in names}
    keys = {
        name.removesuffix(".bias"): layer.key
        for lora in reversed(loras)
        for name, layer in lora.layers.items()
    }
    ldm = {name: key for name, key in keys.items() if key.startswith(_LDM_STEMS)}
    found = next(filter(None, map(guess, loras)), None)
    numbered = "text_encoder_2" in components or any(key.startswith("lora_te1_") for key in keys.values())
    return {
        name: ldm.get(name)
        or _with_known_prefix(name, found)
        or kohya_name(name, bool(ldm), single_text_encoder=not numbered)
        for name in names
    }


def _refuse_unnamed(names: list[str], form: str, spelled: dict[str, str]) -> None:
    """Refuse layers for which a file of one pipeline has no name.

    Other layers that name no component are written under the name that they came with.
    """
    for name in names:
        component = _component_in(name, spelled)
        if not component and is_language_model(name):
            raise MergeError(
                f"{name} belongs to a text model, which {form} files cannot hold; use format='peft'"
            )
        if not component and name in spelled:
            raise MergeError(
                f"{name} is a module of the model that a PEFT folder is for, and {form} files hold only "
                "parts of known pipelines; use format='peft'"
            )
        if form == "kohya" and not _has_kohya_name(name):
            raise MergeError(
                f"{name} belongs to {component}, for which kohya files have no name; use format='diffusers', "
                "or merge each part of the pipeline on its own"
            )


def _has_kohya_name(name: str) -> bool:
    return component_of(name) in ("", "text_encoders", "diffusion_model", *KOHYA_COMPONENTS.values())


def _with_known_prefix(name: str, found: Guess | None) -> str | None:
    """Diffusers' name with the prefix that readers of kohya files know for the model.

    Where it is not known which of two models it is, the name with dots is known for both.
    """
    component, _, path = name.partition(".")
    if found is None or found.structure == "original" or component not in ("transformer", "diffusion_model"):
        return None
    prefixes = {row.kohya for row in (found.architecture, *found.others)}
    prefix = prefixes.pop() if len(prefixes) == 1 else f"{found.architecture.component}."
    if not prefix.endswith("."):
        return prefix + path.replace(".", "_")
    return None if _FLAT.search(path) else prefix + path


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
        if form == "kohya" or (form == "diffusers" and _is_generic(name)):
            tensors[f"{stem}.alpha"] = torch.tensor(layer.scale * layer.rank, dtype=torch.float32)
    return {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}


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
            tensors[weight.key] = (
                weight.value.cpu().contiguous()
            )  # ComfyUI knows it by the model's own name only
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
        tensors[key] = weight.value.cpu().contiguous()
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


def _spelled_in_peft_folders(loras: list[Lora]) -> dict[str, str]:
    """Return the stem of each layer's keys as the first PEFT folder with that layer spells it."""
    folders = [lora for lora in reversed(loras) if lora.dialect == "peft"]
    stems = {}
    for lora in folders:
        for name, weight in lora.whole_weights.items():
            stem = weight.key if weight.rows else weight.key.rpartition(".")[0]
            stems[name.removesuffix(".bias")] = stem.removesuffix(".base_layer")
        stems |= {name.removesuffix(".bias"): layer.key for name, layer in lora.layers.items()}
    return stems


def _component_in(name: str, spelled: dict[str, str]) -> str:
    """Return the component of a layer; empty if its whole name is a module path in a PEFT folder's model.

    So ``transformer.h.0.attn.c_attn`` is a layer of GPT-2, not of a pipeline's transformer.
    """
    return "" if spelled.get(name) == f"base_model.model.{name}" else component_of(name)


def component_of(name: str) -> str:
    """Return the part of a pipeline that a layer belongs to; empty for a layer of a text model."""
    head = name.partition(".")[0]
    return head if head in DOTTED_COMPONENTS else ""


def _is_generic(name: str) -> bool:
    return component_of(name) == "diffusion_model"


def without_component(name: str, component: str) -> str:
    """Return the path of a layer inside its component."""
    return name.removeprefix(f"{component}.") if component else name
