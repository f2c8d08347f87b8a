"""What the metadata of a file state about alpha, gathered for each part of the pipeline."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from ..errors import LoraFormatError, shown
from ..names.prefixes import with_clean_patterns
from ..names.spelling import DOTTED_COMPONENTS, canonical_name
from .peft_config import check_scales, scale_from_config
from .statements import (
    ALPHAS,
    COMPONENTS,
    DIFFUSERS_METADATA,
    MAX_CONFIG,
    RANKS,
    Statement,
    is_said,
    is_true,
    number,
    statements,
)


@dataclass(slots=True)
class Stated:
    """What one part of the metadata says, as a PEFT configuration.

    ``problem`` is why its alpha cannot be used, ``note`` what was left out of it.
    """

    config: dict[str, Any] = field(default_factory=dict)
    key: str = ""  # that states alpha, for messages
    problem: str = ""
    note: str = ""
    seen: dict[str, int | None] = field(default_factory=dict)  # ranks of its modules, by path

    def scale(self, path: str, rank: int) -> float | None:
        """``alpha / rank`` of a module; None if nothing is stated for it."""
        if "lora_alpha" in self.config or "peft_type" in self.config:
            return scale_from_config(self.config, path, rank)
        if not self.config.get("alpha_pattern"):
            return None
        return scale_from_config({**self.config, "lora_alpha": rank}, path, rank)


def flat_statements(metadata: dict[str, str]) -> tuple[dict[str, Stated], dict[str, Statement]]:
    """Return what is stated for each part of the pipeline (``""``: for all), and alphas of single modules."""
    parts: dict[str, Stated] = {}
    modules: dict[str, Statement] = {}
    for said in statements(metadata):
        if (
            said.part
            and said.part not in COMPONENTS
            and said.name in ALPHAS
            and "." in canonical_name(said.part)
        ):
            modules[canonical_name(said.part)] = said
            continue
        _take_in(parts.setdefault(said.part, Stated()), said)
    for own in parts.values():
        try:
            own.config = with_clean_patterns(own.config)
            check_scales(own.config)
        except LoraFormatError as error:
            own.problem, own.config = str(error), {}
    return parts, modules


def _take_in(own: Stated, said: Statement) -> None:
    """Add one statement to those of its part."""
    if said.name in ALPHAS:
        alpha = number(said.value)
        if alpha is None:
            if is_said(said.value):
                own.note = f"the metadata {said.key!r} is {shown(said.value)}, not a number; it is not used"
            return
        if not math.isfinite(alpha):
            own.problem = f"{said.key} is {shown(said.value)}, which is not a finite number"
            return
        known = own.config.setdefault("lora_alpha", alpha)
        if known != alpha:
            own.problem = f"{own.key} says alpha {known:g} and {said.key} says {alpha:g}"
        own.key = own.key or said.key
    elif said.name in RANKS:
        rank = number(said.value)
        if rank is not None and rank.is_integer():
            own.config["r"] = int(rank)
    elif said.name in ("alpha_pattern", "rank_pattern"):
        if isinstance(said.value, dict):
            own.config[said.name] = {
                str(name).removeprefix(f"{said.part}."): _plain_number(value)
                for name, value in said.value.items()
            }
            own.key = own.key or said.key
    elif is_true(said.value):
        own.config["use_rslora"] = True


def _plain_number(value: Any) -> Any:
    """The number that a text holds, as JSON would; anything else as it is."""
    found = number(value)
    if found is None:
        return value
    return int(found) if math.isfinite(found) and found.is_integer() else found


def diffusers_statements(metadata: dict[str, str]) -> dict[str, Stated]:
    """Diffusers' ``lora_adapter_metadata``, one configuration per component (``""``: no prefix).

    Raises:
        LoraFormatError: if it cannot be read, or a scale in it is not a number.
    """
    raw = metadata.get(DIFFUSERS_METADATA)
    if raw is None:
        return {}
    if len(raw) > MAX_CONFIG:
        raise LoraFormatError(f"the metadata {DIFFUSERS_METADATA!r} has {len(raw)} characters")
    try:
        flat = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise LoraFormatError(f"the metadata {DIFFUSERS_METADATA!r} is not valid JSON") from error
    if not isinstance(flat, dict):
        raise LoraFormatError(f"the metadata {DIFFUSERS_METADATA!r} is not a JSON object")
    parts: dict[str, Stated] = {}
    for key, value in flat.items():
        component, dot, name = key.partition(".")
        is_prefixed = bool(dot) and component in DOTTED_COMPONENTS
        own = parts.setdefault(component if is_prefixed else "", Stated(key=DIFFUSERS_METADATA))
        own.config[name if is_prefixed else key] = value
    for component, own in parts.items():
        own.config = with_clean_patterns(own.config)
        try:
            check_scales(own.config)
        except LoraFormatError as error:
            raise LoraFormatError(f"metadata of {component or 'the model'}: {error}") from error
        own.config.setdefault("peft_type", "LORA")
    return parts


def part_of(parts: dict[str, Stated], component: str) -> Stated | None:
    """Return what is stated for a component of the model.

    A denoiser has many names: ``transformer`` in diffusers, ``diffusion_model`` in ComfyUI, none in files of
    trainers. So what is stated for one denoiser holds for the only one in the file.

    Raises:
        LoraFormatError: if the metadata state different scales for several, none of which it is.
    """
    if component in parts:
        return parts[component]
    if component.startswith("text_encoder"):
        return parts.get("")
    others = [part for part in parts if part and not part.startswith("text_encoder")]
    if len({repr(sorted(parts[part].config.items())) for part in others}) > 1:
        raise LoraFormatError(
            f"the metadata state different scales for {', '.join(others)}, and nothing says whose the layers "
            "are; give the keys such a prefix, or remove what does not belong to them"
        )
    return parts[others[0]] if others else parts.get("")
