"""Reading whole models: single-file checkpoints, and folders of diffusers and transformers."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..errors import LoraFormatError, reading
from ..names.checkpoint import BUFFERS, UNNAMED, Parts, has_comfyui_name, is_buffer, other_part
from ..names.language import is_conv1d
from ..names.open_clip import from_open_clip
from ..names.parts import is_language_model
from ..names.prefixes import strip_wrappers
from ..names.spelling import DOTTED_COMPONENTS, canonical_name
from ..names.whole_file import settle_names
from .container import file_digest
from .header import torch_dtype
from .layer_index import Span
from .model_folder import CONFIG, PIPELINE, listed_shards, read_json
from .paths import check_model
from .quantised import READABLE, Quantisation, is_beside
from .relaid import find_relaid, open_span
from .shard import Shard, read_shard
from .whole_model import ModelWeight, WholeModel, layout_of, split_role

_INDEX_END = ".safetensors.index.json"
_WHOLE = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_EMBEDDINGS = ("embed_tokens", "wte", "wpe", "shared", "word_embeddings", "position_embeddings")
_WAY_OUT = "extract from the model in fp32, fp16, bf16 or fp8"


class _Named(NamedTuple):
    """A tensor and the name it has: of a layer with ``.weight`` or ``.bias``, or of a bare parameter."""

    name: str
    stored: Quantisation
    span: Span
    spelled: str  # the module's name as the file has it


class _Place(NamedTuple):
    """The part of a pipeline that a tensor is in, and the names there of the layers that share its rows."""

    prefix: str
    paths: tuple[str, ...]
    turned: bool = False  # stored as (in, out)


class _Sides(NamedTuple):
    """What names are told apart by; see ``Sized``."""

    key: str
    matrix_shape: tuple[int, int]


def open_whole_model(path: str | os.PathLike[str]) -> WholeModel:
    """Open a model: a safetensors file, or a folder of a diffusers pipeline, one part of it, or transformers.

    Only headers are read. A checkpoint may hold the diffusion model alone or text encoders too.

    Raises:
        LoraFormatError: if there is no such model, a file is damaged or one that an index lists is missing,
            or its weights are packed in a way that cannot be read.
    """
    where = Path(path)
    listed = list(_files(where))
    if not listed:
        raise LoraFormatError(f"{where.name or where} holds no .safetensors file of a model; check the path")
    shards = [read_shard(file, component) for component, file in listed]
    config = read_json(where / CONFIG) if (where / CONFIG).is_file() else {}
    beside: Counter[str] = Counter()
    parts = Parts([entry.name for shard in shards if not shard.component for entry in shard.entries])
    named = [each for shard in shards for each in _named(shard, parts, beside)]
    weights = _weights(where.name, named)
    is_language = "_class_name" not in config and (
        bool(config) or sum(map(is_language_model, weights)) * 2 > len(weights)
    )
    return WholeModel(
        where.stem if where.is_file() else where.resolve().name,
        _of_language(weights, str(config.get("model_type", ""))) if is_language else weights,
        "peft" if is_language else "kohya",
        lambda: file_digest(*(shard.path for shard in shards)),
        shards[0].metadata if len(shards) == 1 else {},
        dict(beside),
        find_relaid(shards, {(each.span.component, each.span.entry.name): each.stored for each in named}),
    )


def _files(where: Path) -> Iterator[tuple[str, Path]]:
    """The component that each file belongs to, or nothing, and the file."""
    check_model(where)
    if where.is_file():
        yield "", where
        return
    if not (where / PIPELINE).is_file():
        yield from (("", file) for file in _shards(where))
        return
    for component in DOTTED_COMPONENTS:
        if (where / component).is_dir():
            yield from ((component, file) for file in _shards(where / component))


def _shards(folder: Path) -> list[Path]:
    """The files that diffusers or transformers would read of a folder, in order.

    Raises:
        LoraFormatError: if one of an index is missing, or it is not known which of several files is meant.
    """
    usual = next((folder / name for name in _WHOLE if (folder / name).is_file()), None)
    if usual is not None:
        return [usual]
    indices = sorted(folder.glob(f"*{_INDEX_END}"))
    if indices:
        index = min(indices, key=lambda file: len(file.name))  # that of a variant has a longer name
        return [folder / name for name in listed_shards(index)]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) > 1:
        raise LoraFormatError(
            f"{folder.name} holds {len(found)} .safetensors files and no index ({found[0].name}, "
            f"{found[1].name}, ...); give the one that is meant"
        )
    return found


def _named(shard: Shard, parts: Parts, beside: Counter[str]) -> Iterator[_Named]:
    """The tensors of a file with their names; what no LoRA changes is counted in ``beside``.

    Raises:
        LoraFormatError: naming the first weight whose numbers cannot be read, and its format.
    """
    stored = Quantisation(shard)
    with reading(shard.path.name):
        if (packed := stored.packed()) is not None:
            raise LoraFormatError(f"{packed[0]} is packed ({packed[1]}); {_WAY_OUT}")
    names = {entry.name for entry in shard.entries}
    for entry in shard.entries:
        if is_beside(entry.name, names):
            continue
        place = _place(parts, shard.component, strip_wrappers(entry.name))
        if entry.dtype not in READABLE or isinstance(place, str):
            beside[place if isinstance(place, str) else BUFFERS] += 1
            continue
        for number, path in enumerate(place.paths):
            rows = entry.shape[0] // len(place.paths) if entry.shape else 1
            own = None if len(place.paths) == 1 else (number * rows, rows)
            span = Span(shard.component, entry, own, place.turned)
            yield _Named(place.prefix + path, stored, span, path)


def _place(parts: Parts, component: str, name: str) -> _Place | str:
    """Where a tensor is, or what it is that no LoRA changes."""
    if is_buffer(name):
        return BUFFERS
    if component:
        return _Place(f"{component}.", (name,))
    named = None if has_comfyui_name(name) else parts.stated(name)
    if named is None:
        return other_part(name) or _Place("", (name,))
    prefix = f"{named.parts[0]}."
    if not named.is_open_clip:
        return _Place(prefix, (named.path,))
    clip = from_open_clip(named.path)
    if clip is None:
        return UNNAMED
    paths = tuple(layer if layer.endswith(".bias") else f"{layer}.weight" for layer in clip.layers)
    return _Place(prefix, paths, clip.turned)


def _weights(model: str, named: Sequence[_Named]) -> dict[str, ModelWeight]:
    """The weights by canonical name.

    Raises:
        LoraFormatError: if two tensors have one name.
    """
    modules: dict[str, str] = {}  # the name in the file -> the canonical one
    for each in named:
        module = split_role(each.name)[0]
        modules.setdefault(module, canonical_name(module))
    sides = {
        modules[module]: _Sides(module, (shape[0], math.prod(shape[1:])))
        for each in named
        if (module := split_role(each.name)[0]) and len(shape := each.span.shape) > 1
    }
    settled = settle_names(modules.values(), sides)
    weights: dict[str, ModelWeight] = {}
    for each in named:
        module, role = split_role(each.name)
        name = settled.get(modules[module], modules[module])
        name = f"{name}.bias" if role == "bias" else name
        if name in weights:
            raise LoraFormatError(f"{model} has {name} twice ({each.span.entry.name} is the second)")
        shape, dtype = each.span.shape, torch_dtype(each.span.entry)
        spelled, read = split_role(each.spelled)[0], open_span(each.stored, each.span)
        weights[name] = ModelWeight(shape, dtype, layout_of(role, shape), spelled, read, is_bare=not role)
    return weights


def _of_language(weights: Mapping[str, ModelWeight], model_type: str) -> dict[str, ModelWeight]:
    """The weights of a language model as PEFT has them: embeddings and Conv1D are stored transposed."""
    found = {}
    for name, weight in weights.items():
        layout = weight.layout
        if layout == "linear" and name.rpartition(".")[2] in _EMBEDDINGS:
            layout = "embedding"
        elif layout == "linear" and is_conv1d(model_type, name):
            layout = "fan_in_fan_out"
        found[name] = replace(weight, layout=layout, key=f"base_model.model.{weight.key}")
    return found
