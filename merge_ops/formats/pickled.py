"""Pickled LoRAs, opened only where that is asked for, by torch's reader of tensors, which runs no code."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LoraFormatError
from .lookalike import refuse_by_keys

# modules in the lists of cloneofsimo's scripts: the part of the model, and the classes that were trained
_LISTS = {
    128: ("unet", ["CrossAttention", "Attention"]),
    144: ("unet", ["CrossAttention", "Attention", "GEGLU"]),
    48: ("text_encoder", ["CLIPAttention"]),
}
_NESTED = ("state_dict", "model")  # where trainers put the weights, beside their own notes
_BROKEN = (pickle.UnpicklingError, OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError,
           AttributeError, MemoryError, AssertionError, OverflowError, RecursionError)  # fmt: skip


def read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return ``(tensors, metadata)`` of a file that ``torch.save`` wrote, read with ``weights_only=True``.

    Raises:
        LoraFormatError: if it is of another format, is not made of plain tensors, or claims more memory than
            it has bytes.
    """
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        raise LoraFormatError(
            "the file holds more than tensors, or is damaged; convert it to .safetensors where it was made"
        ) from error
    if isinstance(content, list):
        return _from_list(content, path)
    if isinstance(content, Mapping):
        content = next((content[key] for key in _NESTED if key in content), content)
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise LoraFormatError(f"the file holds a {type(content).__name__}, not tensors by name")
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors and all(key.startswith("<") for key in tensors):
        raise LoraFormatError(
            "this is a textual-inversion embedding, not a LoRA; put it into the embeddings folder"
        )
    refuse_by_keys(tensors)
    return _checked(tensors, path), {}


def _check_archive(path: Path) -> None:
    """A zip archive of stored entries: what is compressed, or older than PyTorch 1.6, may claim any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise LoraFormatError(
            "this is not a file of PyTorch 1.6 or later; convert it to .safetensors where it was made"
        ) from error
    size = path.stat().st_size
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or size < sum(
        entry.file_size for entry in entries
    ):
        raise LoraFormatError("the file is compressed, unlike files that PyTorch writes; download it again")


def _checked(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Plain tensors of numbers in memory, no larger than the file: strides of 0 make much of one number."""
    size = path.stat().st_size
    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or not name.isprintable():
            raise LoraFormatError(f"{name[:100]!r} is not a plain tensor")
        size -= tensor.numel() * tensor.element_size()
        if size < 0:
            raise LoraFormatError(f"{name} claims more memory than the file has bytes")
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _from_list(factors: list[Any], path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The first files of cloneofsimo: ups and downs in turn, in the order of the modules."""
    part = _LISTS.get(len(factors) // 2)
    if part is None or len(factors) % 2 or not all(isinstance(each, Tensor) for each in factors):
        raise LoraFormatError(
            f"the file holds a list of {len(factors)}, and lists of cloneofsimo's lora have "
            f"{', '.join(str(2 * count) for count in sorted(_LISTS))} tensors"
        )
    component, classes = part
    names = [f"{component}:{i // 2}:{'down' if i % 2 else 'up'}" for i in range(len(factors))]
    return _checked(dict(zip(names, factors, strict=True)), path), {component: json.dumps(classes)}
