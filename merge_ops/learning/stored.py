"""Recordings as safetensors files: every tensor once, and the structure as JSON in the metadata."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import LoraFormatError, ParameterError
from .plain import Tree
from .recording import RecordedLora, Recording
from .samples import Sample

FORMAT = "lora_alloy_recording"
_VERSION = 1


def save_recording(recording: Recording, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write a recording as one safetensors file.

    Raises:
        ParameterError: if the file exists and ``overwrite`` is not set, or the name does not end in
            ``.safetensors``.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise ParameterError(f"{target.name}: the name of a recording ends in .safetensors")
    if target.exists() and not overwrite:
        raise ParameterError(f"{target.name} exists; choose another name, or allow overwriting")
    tensors = _Numbered()
    samples = [
        {
            "module": sample.module, "role": sample.role, "held_out": sample.is_held_out,
            "distance": sample.distance, "args": _written(sample.args, tensors),
            "kwargs": _written(sample.kwargs, tensors), "output": tensors.number(sample.output),
        }
        for sample in recording.samples
    ]  # fmt: skip
    content = {
        "version": _VERSION, "base": recording.base, "seed": recording.seed,
        "loras": [asdict(lora) for lora in recording.loras], "keep_prompts": recording.keep_prompts,
        "together_prompts": recording.together_prompts, "samples": samples,
    }  # fmt: skip
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors.by_name(), unfinished, {FORMAT: json.dumps(content)})
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def load_recording(path: str | os.PathLike[str]) -> Recording:
    """Read a recording that ``save_recording`` wrote.

    Raises:
        LoraFormatError: if the file is not a recording, or is damaged.
    """
    source = Path(path)
    try:
        with safe_open(source, "pt") as file:
            text = (file.metadata() or {}).get(FORMAT)
            tensors = {name: file.get_tensor(name) for name in file.keys()} if text else {}
    except (OSError, SafetensorError) as error:
        raise LoraFormatError(f"{source.name}: cannot be read: {error}") from error
    if text is None:
        raise LoraFormatError(f"{source.name}: this is not a recording of LoRA Alloy")
    try:
        return _recording(json.loads(text), tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LoraFormatError(
            f"{source.name}: the recording is damaged or of a newer version: {error!r}"
        ) from error


def _recording(content: dict[str, Any], tensors: dict[str, Tensor]) -> Recording:
    if content["version"] != _VERSION:
        raise ValueError(f"version {content['version']}")
    samples = tuple(
        Sample(
            str(each["module"]), each["role"], _read(each["args"], tensors), _read(each["kwargs"], tensors),
            tensors[each["output"]], bool(each["held_out"]), each["distance"],
        )
        for each in content["samples"]
    )  # fmt: skip
    loras = tuple(RecordedLora(**each | {"prompts": tuple(each["prompts"])}) for each in content["loras"])
    return Recording(
        samples, loras, str(content["base"]), int(content["seed"]), tuple(content["keep_prompts"]),
        tuple(content["together_prompts"]),
    )  # fmt: skip


class _Numbered:
    """Tensors in the order in which they were first seen."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._tensors: list[Tensor] = []

    def number(self, tensor: Tensor) -> str:
        place = self._places.setdefault(id(tensor), len(self._tensors))
        if place == len(self._tensors):
            self._tensors.append(tensor)
        return str(place)

    def by_name(self) -> dict[str, Tensor]:
        return {str(place): tensor.contiguous() for place, tensor in enumerate(self._tensors)}


def _written(value: Tree, tensors: _Numbered) -> Any:
    """A tree as JSON: a container or tensor is a list that begins with its kind."""
    if isinstance(value, Tensor):
        return ["tensor", tensors.number(value)]
    if isinstance(value, dict):
        return ["dict", [[key, _written(each, tensors)] for key, each in value.items()]]
    if isinstance(value, tuple | list):
        return [type(value).__name__, [_written(each, tensors) for each in value]]
    return value


def _read(value: Any, tensors: dict[str, Tensor]) -> Tree:
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _read(each, tensors) for key, each in content}
    items = [_read(each, tensors) for each in content]
    return {"list": list, "tuple": tuple}[kind](items)
