"""Reading a LoRA: a safetensors file or a PEFT folder becomes a ``Lora``."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters.module import UNRECOGNISED, RawModule
from ..adapters.reading import adapters_of, group_by_module, reason_not_merged
from ..errors import LoraFormatError
from ..lora import BaseDependent, Layer, Lora, WholeWeight
from ..names.architectures import family_title
from ..names.spelling import DOTTED_COMPONENTS, KOHYA_COMPONENTS, canonical_name, is_doubled
from .container import changed, file_digest, read_container
from .experts import expert_layers
from .lookalike import PICKLE
from .peft_config import CONFIG_NAME, check_scales, read_config, scale_from_config
from .pti import from_pti, is_pti
from .tokens import token_rows
from .warned import rank_of, ranks_in, warnings_of_config, warnings_of_layers
from .whole import whole_weights

WEIGHTS_NAME = "adapter_model.safetensors"
_PICKLED_NAME = "adapter_model.bin"
DIFFUSERS_METADATA = "lora_adapter_metadata"
_MAX_CONFIG = 2 << 20  # characters; real ones have a few thousand
_COMPONENT_OF_CLASS = {
    "UNet2DConditionModel": "unet",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
}

_RANK_ROLES = ("down", "embedding_down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")  # rows of it are the rank

Digest = Callable[..., str] | None
ScaleOf = Callable[[RawModule], float | None]


def load(path: str | os.PathLike[str], allow_pickle: bool = False) -> Lora:
    """Read one LoRA from a ``.safetensors`` file or a PEFT folder.

    The spelling of the keys does not matter: layers have canonical names, and the scale of each is resolved
    (``alpha / rank``, rsLoRA, patterns, metadata). Other kinds of adapters in the file are listed in
    ``unmerged``.

    Raises:
        LoraFormatError: if the path cannot be read as a LoRA; the message names the file and what to do.
    """
    return _load(Path(path), file_digest, allow_pickle)


def read_back(path: Path) -> Lora:
    """``load`` without checksum and search for NaN, for a file just written that is compared in full."""
    return _load(path, None)


def _load(where: Path, digest: Digest, allow_pickle: bool = False) -> Lora:
    try:
        is_folder, is_file = where.is_dir(), where.is_file()
    except OSError as error:  # a name that is longer than any file's may be
        raise LoraFormatError(f"{where.name[:80]!r} cannot be a file: {error.strerror}") from error
    if is_folder:
        names = (WEIGHTS_NAME, _PICKLED_NAME) if allow_pickle else (WEIGHTS_NAME,)
        weights = next((where / name for name in names if (where / name).is_file()), where / WEIGHTS_NAME)
        return _load_peft_folder(where, weights, digest, allow_pickle)
    if not is_file:
        raise LoraFormatError(f"there is no file {where.name!r}; check the path")
    with _unchanged(where):
        tensors, metadata = read_container(where, allow_pickle, finite=digest is None)
        in_folder = (where.parent / CONFIG_NAME).is_file()
        if tensors and in_folder and all(key.startswith("base_model.model.") for key in tensors):
            return _load_peft_folder(where.parent, where, digest, allow_pickle)
        return _located(from_tensors(where.stem, tensors, metadata, where.name), where, digest, where)


def from_tensors(
    name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, file: str | None = None
) -> Lora:
    """A LoRA from a state dict, as a file of it would be read.

    ``name`` is what the LoRA is called, ``file`` what messages call it.
    """
    metadata, file = metadata or {}, file or name
    if is_pti(list(tensors)):
        return from_pti(name, file, tensors, metadata)
    config = _embedded_config(metadata, file)

    def scale_of(module: RawModule) -> float | None:
        component, _, inner = canonical_name(module.stem).partition(".")
        own = config.get(component, config.get(""))
        if not own or "alpha" in module.tensors or "down" not in module.tensors:
            return None
        return scale_from_config(own, inner, module.tensors["down"].shape[0])

    lora = _build(file, tensors, canonical_name, scale_of)
    said = [line for part, own in config.items() for line in warnings_of_config(own, ranks_in(lora, part))]
    warnings = (*lora.warnings, *said)
    return replace(lora, name=name, dialect=_dialect(list(tensors)), metadata=metadata, warnings=warnings)


@contextmanager
def _unchanged(*files: Path) -> Iterator[None]:
    """Weights, configuration and checksum are read one by one: refuse if somebody writes meanwhile."""
    before = [_state(file) for file in files]
    yield
    if [_state(file) for file in files] != before:
        raise changed(files[0].name)


def _state(file: Path) -> tuple[int, int] | None:
    return (file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else None


def _load_peft_folder(folder: Path, file: Path, digest: Digest, allow_pickle: bool) -> Lora:
    with _unchanged(file, folder / CONFIG_NAME):
        return _read_peft_folder(folder, file, digest, allow_pickle)


def _read_peft_folder(folder: Path, file: Path, digest: Digest, allow_pickle: bool) -> Lora:
    config = read_config(folder / CONFIG_NAME)
    if not file.is_file():
        if (folder / _PICKLED_NAME).is_file():
            raise LoraFormatError(f"{folder.name}/{_PICKLED_NAME} {PICKLE}")
        raise LoraFormatError(f"{folder.name} has no {WEIGHTS_NAME}; give a PEFT adapter folder")
    tensors, metadata = read_container(file, allow_pickle, finite=digest is None)
    base_class = (config.get("auto_mapping") or {}).get("base_model_class", "")
    component = _COMPONENT_OF_CLASS.get(str(base_class))

    def name_of(stem: str) -> str:
        path = stem.removeprefix("base_model.model.")
        return canonical_name(f"{component}.{path}" if component else path)

    def scale_of(module: RawModule) -> float | None:
        path = module.stem.removeprefix("base_model.model.")
        shapes = [t.shape for role in _RANK_ROLES if (t := module.tensors.get(role)) is not None]
        if not shapes and module.tensors.keys().isdisjoint(("lokr_w1", "lokr_w1_a")):
            return None
        return scale_from_config(config, path, shapes[0][0] if shapes and shapes[0] else None)

    lora = _build(folder.name, tensors, name_of, scale_of, config)
    adapters: list[Layer | BaseDependent] = [*lora.layers.values(), *lora.base_dependent.values()]
    ranks = {each.key.removeprefix("base_model.model."): rank_of(each) for each in adapters}
    warnings = (*lora.warnings, *warnings_of_config(config, ranks))
    lora = replace(lora, dialect="peft", metadata=metadata, config=config, warnings=warnings)
    return _located(lora, folder, digest, file, folder / CONFIG_NAME)


def _located(lora: Lora, path: Path, digest: Digest, *source: Path) -> Lora:
    return replace(lora, path=path, sha256=digest(*source) if digest else None)


def _build(
    file: str,
    tensors: dict[str, Tensor],
    name_of: Callable[[str], str],
    scale_of: ScaleOf,
    config: dict[str, Any] | None = None,
) -> Lora:
    """The layers of a file, and what is in it besides; ``config`` is that of a PEFT folder."""
    modules, unknown = group_by_module(tensors, file)
    whole, experts = {}, {}
    if config is not None:
        whole = whole_weights(unknown, tensors, config) | token_rows(unknown, tensors, config, file)
        experts = expert_layers(modules, config, file)
    unmerged = {key: UNRECOGNISED for key in unknown if key not in whole}
    whole_held = {name_of(stem): weight for stem, weight in whole.values()}
    layers: dict[str, Layer] = {name_of(stem): layer for stem, layer in experts.items()}
    base_dependent: dict[str, BaseDependent] = {}
    for stem, module in modules.items():
        name, reason = name_of(stem), reason_not_merged(module)
        if reason is not None:
            unmerged[name] = reason
            continue
        for place, found in adapters_of(module, scale_of(module), config or {}, file):
            other = (
                layers.get(name + place) or base_dependent.get(name + place) or whole_held.get(name + place)
            )
            if other is not None and not (isinstance(other, WholeWeight) and isinstance(found, Layer)):
                raise LoraFormatError(
                    f"{file}: {other.key} and {stem} are one layer in two spellings; keep one of them"
                )
            if isinstance(found, Layer):
                layers[name + place] = found
            elif isinstance(found, BaseDependent):
                base_dependent[name + place] = found
            else:
                whole_held[name + place] = found
    if not (layers or base_dependent or whole_held):
        raise LoraFormatError(_nothing_usable(file, list(modules) + unknown, unmerged))
    doubled = any(map(is_doubled, modules))
    warnings = ["the prefix 'unet' is doubled in the keys; it was read as one"] if doubled else []
    warnings += warnings_of_layers(layers, base_dependent, bool(whole_held))
    return Lora(
        file,
        layers,
        unmerged=unmerged,
        warnings=tuple(warnings),
        base_dependent=base_dependent,
        whole_weights=whole_held,
    )


def _nothing_usable(file: str, keys: list[str], unmerged: dict[str, str]) -> str:
    reasons = {reason: name for name, reason in unmerged.items() if reason != UNRECOGNISED}
    if reasons:
        listed = "; ".join(f"{name} is {reason}" for reason, name in sorted(reasons.items()))
        return f"{file} holds nothing that can be merged: {listed}"
    shown = ", ".join(repr(key) for key in keys[:3]) or "none"
    title = family_title(map(canonical_name, keys))
    return (
        f"{file} holds no LoRA: its keys are {shown}{f' (of {title})' if title else ''}, and keys such as "
        "'lora_unet_….lora_down.weight' or '….lora_A.weight' are expected"
    )


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


def _embedded_config(metadata: dict[str, str], file: str) -> dict[str, dict[str, Any]]:
    """Diffusers' ``lora_adapter_metadata``, one configuration a component (``""``: no prefix)."""
    raw = metadata.get(DIFFUSERS_METADATA)
    if raw is None:
        return {}
    if len(raw) > _MAX_CONFIG:
        raise LoraFormatError(f"{file}: the metadata {DIFFUSERS_METADATA!r} has {len(raw)} characters")
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
    for component, own in found.items():
        check_scales(own, f"{file}, metadata of {component or 'the model'}")
    return found
