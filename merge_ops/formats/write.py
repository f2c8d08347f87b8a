"""The tensors, metadata and configuration of a file in one of the formats that we write.

Every scale is folded into the factors before this point, so each format says "scale 1" in its own way: kohya
and generic keys carry ``alpha = rank``, a PEFT configuration ``lora_alpha = r`` with patterns where ranks
differ. Where ranks differ kohya's files have one alpha for all layers, with the rest of the scale in the
factors: diffusers takes the most common alpha for attention layers, whatever theirs is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import MergeError
from ..types import Lora, LowRank
from .carried import HUB_NAME, carried_over, hashes
from .names import DOTTED_COMPONENTS, kohya_name
from .read import DIFFUSERS_METADATA

FORMATS = ("kohya", "diffusers", "peft")
_AUTO = {
    "kohya": "kohya",
    "diffusers": "diffusers",
    "peft-keys": "diffusers",
    "peft": "peft",
}
_LDM_STEMS = ("lora_unet_input_blocks_", "lora_unet_output_blocks_")


def resolve_format(asked: str, first: Lora) -> str:
    """The format to write; ``auto`` is that of the first LoRA, or kohya where we only read that one.

    Generic names of an LDM UNet are among those: as layers of a diffusers UNet, ComfyUI would not find them.
    """
    if asked == "auto" and first.dialect == "generic":
        return "diffusers" if any(map(_is_generic, first.layers)) else "kohya"
    return _AUTO.get(first.dialect, "kohya") if asked == "auto" else asked


def module_names(layers: Iterable[str], form: str, loras: list[Lora]) -> dict[str, str]:
    """Layer name to the stem of its keys in the file, one to one."""
    names = list(layers)
    spelled = _spelled_in_peft_folders(loras)
    components = {_component_in(name, spelled) for name in names}
    if form == "peft":
        if len(components) > 1:
            parts = ", ".join(sorted(part or "a text model" for part in components))
            raise MergeError(
                f"a PEFT folder is for one model, but there are layers of {parts}; use format='kohya'"
            )
        return {
            name: spelled.get(name, f"base_model.model.{_without(name, _component(name))}") for name in names
        }
    if "" in components:
        bare = next(name for name in names if not _component_in(name, spelled))
        raise MergeError(f"{bare} belongs to a text model, which {form} files cannot hold; use format='peft'")
    if form == "diffusers":
        return {name: name for name in names}
    keys = {name: layer.key for lora in reversed(loras) for name, layer in lora.layers.items()}
    ldm = {name: key for name, key in keys.items() if key.startswith(_LDM_STEMS)}
    numbered = "text_encoder_2" in components or any(key.startswith("lora_te1_") for key in keys.values())
    return {
        name: ldm.get(name) or kohya_name(name, bool(ldm), single_text_encoder=not numbered) for name in names
    }


def file_tensors(layers: dict[str, LowRank], stems: dict[str, str], form: str) -> dict[str, Tensor]:
    """The tensors to write. ``layers`` have scale 1, or in kohya's format one alpha over their rank."""
    down, up = (
        (".lora_down.weight", ".lora_up.weight") if form == "kohya" else (".lora_A.weight", ".lora_B.weight")
    )
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        stem = stems[name]
        if layer.layout == "embedding":
            tensors[f"{stem}.lora_embedding_A"], tensors[f"{stem}.lora_embedding_B"] = layer.down, layer.up
            continue
        if layer.layout == "fan_in_fan_out" and form != "peft":
            raise MergeError(f"{name} is stored transposed, which {form} files cannot say; use format='peft'")
        tensors[stem + down], tensors[stem + up] = _file_shapes(layer)
        if form == "kohya" or _is_generic(name):
            tensors[f"{stem}.alpha"] = torch.tensor(layer.scale * layer.rank, dtype=torch.float32)
    return {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}


def file_metadata(
    layers: dict[str, LowRank],
    form: str,
    loras: list[Lora],
    recipe: dict[str, Any],
    title: str,
    tensors: dict[str, Tensor],
) -> dict[str, str]:
    """The file's metadata: what still holds of the sources, ranks, recipe and hashes. Never a folder."""
    metadata = {"format": "pt", "lora_alloy": json.dumps(recipe), **carried_over(loras)}
    ranks = sorted({layer.rank for layer in layers.values()})
    if form == "kohya":
        rank = str(ranks[0]) if len(ranks) == 1 else "Dynamic"
        alpha = f"{next(layer.scale * layer.rank for layer in layers.values()):g}"
        metadata |= {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": alpha}
        metadata["ss_output_name"] = title
    if form == "diffusers":
        metadata[DIFFUSERS_METADATA] = json.dumps(_diffusers_config(layers))
    data_hash, legacy_hash = hashes(tensors, metadata)
    if form == "kohya":
        metadata |= {"sshs_model_hash": data_hash, "sshs_legacy_hash": legacy_hash}
    merged_from = ", ".join(lora.name for lora in loras)
    return metadata | {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.merged_from": merged_from,
        "modelspec.hash_sha256": f"0x{data_hash}",
    }


def peft_config(layers: dict[str, LowRank], stems: dict[str, str], loras: list[Lora]) -> dict[str, Any]:
    """``adapter_config.json``: one rank and alpha, patterns where layers differ, the union of targets."""
    by_path = {stems[name].removeprefix("base_model.model."): layer for name, layer in layers.items()}
    inherited = next((lora.config for lora in loras if lora.config), {})
    kept = {key: inherited[key] for key in ("task_type", "auto_mapping", "revision") if inherited.get(key)}
    base = inherited.get("base_model_name_or_path")
    if isinstance(base, str) and HUB_NAME.fullmatch(base):  # a folder of somebody's machine stays there
        kept["base_model_name_or_path"] = base
    return {
        "peft_type": "LORA",
        **kept,
        **_rank_config(by_path),
        "target_modules": sorted(by_path),
        "fan_in_fan_out": any(layer.layout == "fan_in_fan_out" for layer in layers.values()),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


def _file_shapes(layer: LowRank) -> tuple[Tensor, Tensor]:
    """``(down, up)`` in the shapes that trainers write: with kernel dimensions for a convolution."""
    if not layer.kernel:
        return layer.down, layer.up
    ones = (1,) * len(layer.kernel)
    return layer.down.reshape(layer.rank, -1, *layer.kernel), layer.up.reshape(*layer.up.shape, *ones)


def _diffusers_config(layers: dict[str, LowRank]) -> dict[str, Any]:
    """One LoRA configuration a component, flattened with the component as prefix, as diffusers writes it."""
    flat: dict[str, Any] = {}
    for component in sorted({_component(name) for name in layers}):
        # without "text_model.", which transformers 5 dropped, the names fit the modules of every version
        own = {
            _without(name, component).removeprefix("text_model."): layer
            for name, layer in layers.items()
            if _component(name) == component
        }
        config = {**_rank_config(own), "target_modules": sorted(own)}
        flat |= {f"{component}.{key}": value for key, value in config.items()}
    return flat


def _rank_config(layers: dict[str, LowRank]) -> dict[str, Any]:
    """``r`` is the most common rank; in a pattern longer names come first, since PEFT takes the first fit."""
    common = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    differing = [name for name in layers if layers[name].rank != common]
    listed = [n for n in layers if n in differing or n.endswith(tuple(f".{d}" for d in differing))]
    others = {name: layers[name].rank for name in sorted(listed, key=len, reverse=True)}
    return {"r": common, "lora_alpha": common, "rank_pattern": others, "alpha_pattern": dict(others)}


def _spelled_in_peft_folders(loras: list[Lora]) -> dict[str, str]:
    """Layer name to the stem of its keys, as the first PEFT folder that has it spells them."""
    folders = [lora for lora in reversed(loras) if lora.dialect == "peft"]
    return {name: layer.key for lora in folders for name, layer in lora.layers.items()}


def _component_in(name: str, spelled: dict[str, str]) -> str:
    """The component of a layer; none if all of its name is a path in the model of a PEFT folder.

    ``transformer.h.0.attn.c_attn`` is GPT-2's, not of a pipeline's transformer.
    """
    return "" if spelled.get(name) == f"base_model.model.{name}" else _component(name)


def _component(name: str) -> str:
    head = name.partition(".")[0]
    return head if head in DOTTED_COMPONENTS else ""


def _is_generic(name: str) -> bool:
    return _component(name) == "diffusion_model"


def _without(name: str, component: str) -> str:
    return name.removeprefix(f"{component}.") if component else name
