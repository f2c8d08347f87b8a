"""Verified writing: write next to the target, read back with our own reader, compare, then rename."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import MergeError, ParameterError
from ..formats.container import sort_metadata
from ..formats.paths import CONFIG_NAME, WEIGHTS_NAME
from ..formats.read import read_back
from ..formats.written import Written, differs, raw_bytes
from ..lora import Lora, LowRank, WholeWeight
from .file_names import EXISTS


@dataclass(frozen=True, slots=True)
class Content:
    """What a file is made of, and the layers and weights that it must hold when it is read back."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    config: dict[str, Any] | None  # ``adapter_config.json`` of a PEFT folder; None for a single file
    layers: dict[str, LowRank]
    stems: dict[str, str]  # layer name to what its keys begin with
    whole_weights: dict[str, WholeWeight]


def write_verified(target: Path, content: Content, overwrite: bool) -> int:
    """Write next to the target, verify and rename; return the size of the weights file in bytes.

    Everything is written inside one hidden folder next to the target, since safetensors writes through a
    temporary file of its own with a random name. So a killed process leaves ``.NAME.XXXXXXXX.part`` or
    nothing.

    Raises:
        ParameterError: if the target exists by now and must not be replaced.
        MergeError: if the file cannot be written, or differs when it is read back.
    """
    target = target.resolve() if target.exists() else target  # what a link leads to
    temporary = target.with_name(f".{target.stem[:80]}.{secrets.token_hex(4)}.part")
    try:
        temporary.mkdir()
        # an unfinished file does not end in .safetensors, so that ComfyUI does not list it
        file = temporary / ("weights" if content.config is None else WEIGHTS_NAME)
        _write_tensors(file, content)
        if content.config is not None:
            _write_config(temporary, content.config)
        finished = file if content.config is None else temporary
        _verify(finished, content)
        size = file.stat().st_size
        put_in_place(finished, target, overwrite)
        sync_names(target.parent)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise MergeError(f"{target.name} could not be written: {reason}; nothing was saved") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return size


def _write_tensors(file: Path, content: Content) -> None:
    file.touch()
    mode = file.stat().st_mode
    save_file(content.tensors, file, content.metadata)
    file.chmod(mode)  # safetensors makes its files readable by the owner only
    sort_metadata(file)
    sync(file)


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    sync(folder / CONFIG_NAME)
    sync_names(folder)


def _verify(path: Path, content: Content) -> None:
    """Compare the file with what was written, then require every layer of it, with its bits and its scale."""
    lora = read_back(path, Written(content.tensors, content.metadata))
    layers = {
        (layer.key, _is_bias(name)): layer
        for name, layer in lora.layers.items()
        if isinstance(layer, LowRank)
    }
    if len(layers) != len(content.layers) or len(lora.whole_weights) != len(content.whole_weights):
        raise MergeError(
            f"the file read back has {len(layers)} layers instead of {len(content.layers)}; nothing was saved"
        )
    _verify_ia3(lora, content.tensors)
    for name, weight in content.whole_weights.items():
        alike = (other for other in lora.whole_weights.values() if other.rows == weight.rows)
        if not any(_same_bits(other.value, weight.value.cpu()) for other in alike):
            raise differs(name)
    for name, layer in content.layers.items():
        read = layers.get((content.stems[name], _is_bias(name)))
        if read is None:
            raise MergeError(f"{name} is missing from the file read back; nothing was saved")
        if not _same_layer(read, layer):
            raise differs(name)


def _verify_ia3(lora: Lora, tensors: dict[str, Tensor]) -> None:
    """Require the factors of (IA)3, which are not among the layers of a file."""
    for key, written in tensors.items():
        if key.endswith(".ia3_l"):
            alike = (adapter for adapter in lora.base_dependent.values() if f"{adapter.key}.ia3_l" == key)
            expected = written.flatten().to(torch.float32) - 1
            if not any(torch.equal(adapter.tensors[0], expected) for adapter in alike):
                raise differs(key)


def _same_layer(read: LowRank, written: LowRank) -> bool:
    return (
        _same_bits(read.up, written.up.cpu())
        and _same_bits(read.down, written.down.cpu())
        and math.isclose(read.scale, written.scale, rel_tol=1e-6)
        and read.weight_shape == written.weight_shape
    )


def _is_bias(name: str) -> bool:
    return name.endswith(".bias")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Compare as bytes, which is many times faster than comparing half-precision numbers."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return True  # the written tensor itself, which was compared with the file
    return np.array_equal(raw_bytes(a), raw_bytes(b))


def put_in_place(finished: Path, target: Path, overwrite: bool) -> None:
    """Give a finished file or folder its final name in one step.

    Raises:
        ParameterError: if the target has appeared in the meantime and ``overwrite`` is off; it is kept.
    """
    if finished.is_dir():
        if not target.is_dir():
            finished.rename(target)
        elif overwrite:
            _replace_folder(finished, target)
        else:
            raise ParameterError(EXISTS.format(target.name))
    elif overwrite:
        finished.replace(target)
    else:
        try:
            os.link(finished, target)
        except FileExistsError as error:
            raise ParameterError(EXISTS.format(target.name)) from error
        except OSError:  # a file system without hard links
            finished.rename(target)


def _replace_folder(finished: Path, target: Path) -> None:
    """Swap the folders, not their files: new weights with an old configuration would have a wrong scale.

    Any other files in the old folder move into the new one.
    """
    aside = finished.with_name(f"{finished.stem}.old.part")
    target.rename(aside)
    try:
        finished.rename(target)
    finally:
        if target.is_dir():  # ours, or that of another process that was faster
            for other in aside.iterdir():
                if other.name not in (WEIGHTS_NAME, CONFIG_NAME):
                    other.rename(target / other.name)
            shutil.rmtree(aside)
        else:
            aside.rename(target)


def sync(path: Path) -> None:
    """Flush a file to disk before the next step relies on it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_names(folder: Path) -> None:
    """Flush the names in a folder to disk where the system can, so that a new name survives a power cut."""
    with suppress(OSError):  # Windows cannot open folders, and some network file systems cannot sync them
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
