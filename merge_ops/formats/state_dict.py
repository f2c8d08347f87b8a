"""A LoRA from a state dict: the tensors of one file, and the metadata that comes with them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..adapters.module import RawModule
from ..errors import LoraFormatError, reading
from ..lora import Lora
from ..names.spelling import DOTTED_COMPONENTS, KOHYA_COMPONENTS, canonical_name
from .build import build_lora
from .flux_control import spell_out_control
from .peft_config import check_scales, scale_from_config
from .pti import from_pti, is_pti
from .warned import ranks_in, warnings_of_config

DIFFUSERS_METADATA = "lora_adapter_metadata"
_MAX_CONFIG = 2 << 20  # characters; real ones have a few thousand


def from_tensors(
    name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, file: str | None = None
) -> Lora:
    """Return the LoRA of a state dict, as a file with these tensors would be read.

    ``name`` is what the LoRA is called, ``file`` what messages call it (``name`` by default).

    Raises:
        LoraFormatError: if the tensors are not those of a LoRA; the message begins with ``file``.
    """
    with reading(file or name):
        if is_pti(list(tensors)):
            return from_pti(name, tensors, metadata or {})
        return _from_keys(name, spell_out_control(tensors), metadata or {})


def _from_keys(name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Lora:
    """The LoRA of keys that name modules, with the scales of the configuration in the metadata."""
    config = _embedded_config(metadata)

    def scale_of(module: RawModule) -> float | None:
        component, _, inner = canonical_name(module.stem).partition(".")
        own = config.get(component, config.get(""))
        shape = module.tensors["down"].shape if "down" in module.tensors else ()
        if not own or "alpha" in module.tensors or not shape:
            return None
        return scale_from_config(own, inner, shape[0])

    lora = build_lora(name, tensors, canonical_name, scale_of)
    contradictions = [
        line for part, own in config.items() for line in warnings_of_config(own, ranks_in(lora, part))
    ]
    warnings = (*lora.warnings, *contradictions)
    return replace(lora, dialect=_dialect(list(tensors)), metadata=metadata, warnings=warnings)


def _dialect(keys: list[str]) -> str:
    """The family of spellings that most of the file uses, which decides what ``format='auto'`` writes."""
    counts = Counter(map(_dialect_of, sorted(keys)))
    return counts.most_common(1)[0][0] if counts else "kohya"


def _dialect_of(key: str) -> str:
    if key.startswith(tuple(KOHYA_COMPONENTS)):
        return "kohya"
    if key.startswith(("diffusion_model.", "model.diffusion_model.")):
        return "generic"
    if ".lora_A" in key or ".lora_B" in key:
        return "diffusers" if key.startswith(tuple(f"{c}." for c in DOTTED_COMPONENTS)) else "peft-keys"
    return "diffusers-legacy"


def _embedded_config(metadata: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Diffusers' ``lora_adapter_metadata``, one configuration per component (``""``: no prefix)."""
    raw = metadata.get(DIFFUSERS_METADATA)
    if raw is None:
        return {}
    if len(raw) > _MAX_CONFIG:
        raise LoraFormatError(f"the metadata {DIFFUSERS_METADATA!r} has {len(raw)} characters")
    try:
        flat = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise LoraFormatError(f"the metadata {DIFFUSERS_METADATA!r} is not valid JSON") from error
    if not isinstance(flat, dict):
        raise LoraFormatError(f"the metadata {DIFFUSERS_METADATA!r} is not a JSON object")
    by_component: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, dot, name = key.partition(".")
        is_prefixed = bool(dot) and component in DOTTED_COMPONENTS
        by_component.setdefault(component if is_prefixed else "", {})[name if is_prefixed else key] = value
    for component, own in by_component.items():
        try:
            check_scales(own)
        except LoraFormatError as error:
            raise LoraFormatError(f"metadata of {component or 'the model'}: {error}") from error
    return by_component
