"""Reading a LoRA: a safetensors file or a PEFT folder becomes a ``Lora``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import LoraFormatError
from ..types import Lora, LowRank
from .adapters import RawModule, group_by_module, low_rank, reason_not_merged
from .container import file_digest, read_container
from .names import DOTTED_COMPONENTS, KOHYA_COMPONENTS, canonical_name, is_doubled
from .peft_config import CONFIG_NAME, read_config, scale_from_config
from .pti import is_pti, pti_layers, pti_role

WEIGHTS_NAME = "adapter_model.safetensors"
DIFFUSERS_METADATA = "lora_adapter_metadata"
_COMPONENT_OF_CLASS = {
    "UNet2DConditionModel": "unet",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
}

ScaleOf = Callable[[RawModule], float | None]


def load(path: str | os.PathLike[str]) -> Lora:
    """Read one LoRA from a ``.safetensors`` file or a PEFT folder.

    The spelling of the keys does not matter: layers have canonical names, and the scale of each is resolved
    (``alpha / rank``, rsLoRA, patterns, metadata). Other kinds of adapters in the file are listed in
    ``unmerged``.

    Raises:
        LoraFormatError: if the path cannot be read as a LoRA; the message names the file and what to do.
    """
    where = Path(path)
    if where.is_dir():
        return _load_peft_folder(where)
    if not where.is_file():
        raise LoraFormatError(f"there is no file {where.name!r}; check the path")
    tensors, metadata = read_container(where)
    keys = list(tensors)
    if is_pti(keys):
        return _load_pti(where, tensors, metadata)
    if (
        keys
        and all(key.startswith("base_model.model.") for key in keys)
        and (where.parent / CONFIG_NAME).is_file()
    ):
        return _load_peft_folder(where.parent, where)
    config = _embedded_config(metadata, where.name)
    modules, unknown = group_by_module(tensors)

    def scale_of(module: RawModule) -> float | None:
        if not config or "alpha" in module.tensors:
            return None
        name = canonical_name(module.stem)
        component, _, inner = name.partition(".")
        own = config.get(component, config.get(""))
        return (
            scale_from_config(own, inner, module.tensors["down"].shape[0])
            if own and "down" in module.tensors
            else None
        )

    dialect = _dialect(keys)
    return _build(where, modules, unknown, canonical_name, scale_of, dialect, metadata, (where,))


def _load_peft_folder(folder: Path, weights: Path | None = None) -> Lora:
    config = read_config(folder / CONFIG_NAME)
    file = weights or folder / WEIGHTS_NAME
    if not file.is_file():
        pickled = (
            " (adapter_model.bin is a pickle: convert it)" if (folder / "adapter_model.bin").is_file() else ""
        )
        raise LoraFormatError(f"{folder.name} has no {WEIGHTS_NAME}{pickled}; give a PEFT adapter folder")
    tensors, metadata = read_container(file)
    modules, unknown = group_by_module(tensors)
    base_class = (config.get("auto_mapping") or {}).get("base_model_class", "")
    component = _COMPONENT_OF_CLASS.get(base_class)

    def name_of(stem: str) -> str:
        path = stem.removeprefix("base_model.model.")
        return canonical_name(f"{component}.{path}" if component else path)

    def scale_of(module: RawModule) -> float | None:
        down = module.tensors.get("down", module.tensors.get("embedding_down"))
        path = module.stem.removeprefix("base_model.model.")
        return None if down is None else scale_from_config(config, path, down.shape[0])

    source = (file, folder / CONFIG_NAME)
    return _build(folder, modules, unknown, name_of, scale_of, "peft", metadata, source, config)


def _load_pti(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Lora:
    modules: dict[str, RawModule] = {}
    unmerged = {}
    for key, tensor in tensors.items():
        role = pti_role(key)
        if role is None:
            unmerged[key] = (
                "textual-inversion embedding, not a LoRA" if key.startswith("<") else "unrecognised key"
            )
            continue
        component, index, half = role
        names = pti_layers(component, metadata, path.name)
        if index >= len(names):
            raise LoraFormatError(
                f"{path.name}: {key} has no place in SD1.x, which has {len(names)} such modules"
            )
        modules.setdefault(names[index], RawModule(f"{component}:{index}")).tensors[half] = tensor
    layers = {name: low_rank(module, 1.0, path.name) for name, module in modules.items()}
    return Lora(path.stem, layers, "pti", metadata, unmerged, (), path, file_digest(path))


def _build(
    path: Path, modules: dict[str, RawModule], unknown: list[str], name_of: Callable[[str], str],
    scale_of: ScaleOf, dialect: str, metadata: dict[str, str], source: tuple[Path, ...],
    config: dict[str, Any] | None = None,
) -> Lora:  # fmt: skip
    layers: dict[str, LowRank] = {}
    unmerged = dict.fromkeys(unknown, "unrecognised key")
    transposed = bool(config and config.get("fan_in_fan_out"))
    for stem, module in modules.items():
        reason = reason_not_merged(module)
        if reason is not None:
            unmerged[name_of(stem)] = reason
            continue
        name = name_of(stem)
        if name in layers:
            raise LoraFormatError(
                f"{path.name}: {layers[name].key} and {stem} are one layer in two spellings; keep one of them"
            )
        layers[name] = low_rank(module, scale_of(module), path.name, transposed)
    if not layers:
        raise LoraFormatError(_nothing_usable(path, list(modules) + unknown, unmerged))
    warnings = (
        ("the prefix 'unet' is doubled in the keys; it was read as one",)
        if any(map(is_doubled, modules))
        else ()
    )
    name = path.name if path.is_dir() else path.stem
    return Lora(name, layers, dialect, metadata, unmerged, warnings, path, file_digest(*source), config)


def _nothing_usable(path: Path, keys: list[str], unmerged: dict[str, str]) -> str:
    kinds = sorted({reason for reason in unmerged.values() if reason.endswith("is not merged yet")})
    if kinds:
        return f"{path.name} holds no plain LoRA layer: {'; '.join(kinds)}"
    shown = ", ".join(repr(key) for key in keys[:3]) or "none"
    return (
        f"{path.name} holds no LoRA: its keys are {shown}, and keys such as 'lora_unet_….lora_down.weight' "
        "or '….lora_A.weight' are expected"
    )


def _dialect(keys: list[str]) -> str:
    """The family of spellings that most of the file uses, which decides what ``format='auto'`` writes."""
    first = keys[0]
    if first.startswith(tuple(KOHYA_COMPONENTS)):
        return "kohya"
    if first.startswith(("diffusion_model.", "model.diffusion_model.")):
        return "generic"
    if ".lora_A" in first or ".lora_B" in first:
        return "diffusers" if first.startswith(tuple(f"{c}." for c in DOTTED_COMPONENTS)) else "peft-keys"
    return "diffusers-legacy"


def _embedded_config(metadata: dict[str, str], file: str) -> dict[str, dict[str, Any]]:
    """Diffusers' ``lora_adapter_metadata``, one configuration a component (``""``: no prefix)."""
    raw = metadata.get(DIFFUSERS_METADATA)
    if raw is None:
        return {}
    try:
        flat = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise LoraFormatError(f"{file}: the metadata {DIFFUSERS_METADATA!r} is not valid JSON") from error
    if not isinstance(flat, dict):
        raise LoraFormatError(f"{file}: the metadata {DIFFUSERS_METADATA!r} is not a JSON object")
    found: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, dot, name = key.partition(".")
        is_prefixed = bool(dot) and component in DOTTED_COMPONENTS
        found.setdefault(component if is_prefixed else "", {})[name if is_prefixed else key] = value
    return found
