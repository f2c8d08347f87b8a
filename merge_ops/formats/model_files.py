"""Reading whole models: single-file checkpoints, and folders of diffusers and transformers."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import LoraFormatError, reading, shown
from ..names.checkpoint import BUFFERS, part_of
from ..names.language import is_conv1d
from ..names.open_clip import TRANSPOSED, from_open_clip
from ..names.parts import is_language_model
from ..names.prefixes import strip_wrappers
from ..names.spelling import DOTTED_COMPONENTS, canonical_name
from ..names.whole_file import settle_names
from .container import file_digest
from .header import torch_dtype
from .stored_numbers import Stored, is_number, is_scale, refuse_packed, rows_of
from .tensor_file import TensorFile
from .whole_model import ModelWeight, WholeModel, layout_of, split_role

_CONFIG, _PIPELINE = "config.json", "model_index.json"
_INDEX_END = ".safetensors.index.json"
_WHOLE = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_EMBEDDINGS = ("embed_tokens", "wte", "wpe", "shared", "word_embeddings", "position_embeddings")
_MAX_JSON = 64 << 20


class _Named(NamedTuple):
    """A tensor and the name it has: of a layer with ``.weight`` or ``.bias``, or of a bare parameter."""

    name: str
    stored: Stored
    spelled: str  # the module's name as the file has it


class _Sides(NamedTuple):
    """What names are told apart by; see ``Sized``."""

    key: str
    matrix_shape: tuple[int, int]


def open_model(path: str | os.PathLike[str]) -> WholeModel:
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
    files = [(component, TensorFile(file)) for component, file in listed]
    config = _config(where)
    beside: Counter[str] = Counter()
    named: list[_Named] = []
    for component, file in files:
        with reading(file.path.name):
            refuse_packed(file)
        named += _named(component, file, beside)
    weights = _weights(where.name, named, str(config.get("model_type", "")))
    is_language = "_class_name" not in config and (
        bool(config) or sum(map(is_language_model, weights)) * 2 > len(weights)
    )
    return WholeModel(
        where.stem if where.is_file() else where.resolve().name,
        _of_language(weights, str(config.get("model_type", ""))) if is_language else weights,
        "peft" if is_language else "kohya",
        lambda: file_digest(*(file.path for _, file in files)),
        files[0][1].metadata if len(files) == 1 else {},
        dict(beside),
    )


def _files(where: Path) -> Iterator[tuple[str, Path]]:
    """The component that each file belongs to, or nothing, and the file."""
    if where.is_file():
        yield "", where
        return
    if not where.is_dir():
        raise LoraFormatError(f"there is no file or folder {where.name!r}; check the path")
    if not (where / _PIPELINE).is_file():
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
        with reading(folder.name):
            return [folder / name for name in _listed(index)]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) > 1:
        raise LoraFormatError(
            f"{folder.name} holds {len(found)} .safetensors files and no index ({found[0].name}, "
            f"{found[1].name}, ...); give the one that is meant"
        )
    return found


def _listed(index: Path) -> list[str]:
    """The names of the files in an index, which lie in its folder."""
    names = _json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise LoraFormatError(f"{index.name} has no weight_map; download it again")
    files = set()
    for name in names.values():
        if not isinstance(name, str) or name != Path(name).name or not name.endswith(".safetensors"):
            raise LoraFormatError(f"{index.name} names {shown(name)}, which is not a safetensors file")
        if not (index.parent / name).is_file():
            raise LoraFormatError(f"{name}, which {index.name} lists, is missing; download it")
        files.add(name)
    return sorted(files)


def _config(where: Path) -> dict[str, Any]:
    return _json(where / _CONFIG) if (where / _CONFIG).is_file() else {}


def _json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MAX_JSON:
            raise LoraFormatError(f"{file.name} is too large")
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoraFormatError(f"{file.name} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise LoraFormatError(f"{file.name} is not valid JSON") from error
    if not isinstance(value, dict):
        raise LoraFormatError(f"{file.name} is not a JSON object")
    return value


def _named(component: str, file: TensorFile, beside: Counter[str]) -> Iterator[_Named]:
    """The tensors of a file with their names; what no LoRA changes is counted in ``beside``."""
    for key, entry in file.entries.items():
        if is_scale(key, file.entries):
            continue
        part = part_of(strip_wrappers(key))
        if part.beside or not is_number(entry):
            beside[part.beside or BUFFERS] += 1
            continue
        prefix = f"{component}." if component else part.component
        paths = from_open_clip(part.path) if part.is_open_clip else (part.path,)
        if not paths:
            beside["a part of the text encoder that no LoRA has a name for"] += 1
        for number, path in enumerate(paths):
            rows = entry.shape[0] // len(paths) if entry.shape else 1
            turned = part.is_open_clip and path in TRANSPOSED
            stored = Stored(file, key, number * rows, rows, is_turned=turned)
            yield _Named(prefix + path, stored, path)


def _weights(model: str, named: list[_Named], model_type: str) -> dict[str, ModelWeight]:
    """The weights by canonical name.

    Raises:
        LoraFormatError: if two tensors have one name.
    """
    modules: dict[str, str] = {}  # the name in the file -> the canonical one
    for each in named:
        module = split_role(each.name)[0]
        modules.setdefault(module, canonical_name(module))
    sides = {
        modules[module]: _Sides(module, (shape[0], _columns(shape)))
        for each in named
        if (module := split_role(each.name)[0]) and len(shape := each.stored.shape) > 1
    }
    settled = settle_names(modules.values(), sides)
    weights: dict[str, ModelWeight] = {}
    for each in named:
        module, role = split_role(each.name)
        name = settled.get(modules[module], modules[module])
        name = f"{name}.bias" if role == "bias" else name
        if name in weights:
            raise LoraFormatError(f"{model} has {name} twice ({each.stored.key} is the second)")
        dtype = torch_dtype(each.stored.entry)
        layout = layout_of(role, each.stored.shape)
        spelled = split_role(each.spelled)[0]
        weights[name] = ModelWeight(
            each.stored.shape, dtype, layout, spelled, rows_of(each.stored), is_bare=not role
        )  # fmt: skip
    return weights


def _columns(shape: tuple[int, ...]) -> int:
    columns = 1
    for side in shape[1:]:
        columns *= side
    return columns


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
