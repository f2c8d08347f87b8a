"""Writing that proves itself: beside the target, read back with our own reader, compared, then renamed."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import MergeError, ParameterError
from ..formats.container import sort_metadata
from ..formats.peft_config import CONFIG_NAME
from ..formats.peft_folder import WEIGHTS_NAME
from ..formats.read import read_back
from ..lora import Lora, LowRank, WholeWeight

EXISTS = "{} exists already; choose another name, or ask to overwrite it"


def write_verified(
    target: Path, tensors: dict[str, Tensor], metadata: dict[str, str], config: dict[str, Any] | None,
    layers: dict[str, LowRank], stems: dict[str, str], replaced: dict[str, WholeWeight], overwrite: bool,
) -> int:  # fmt: skip
    """Write next to the target, verify, rename; return the size in bytes.

    Everything is made inside one hidden folder beside the target, since safetensors writes through a file of
    its own with a random name. So a process that is killed leaves ``.NAME.XXXXXXXX.part`` or nothing.
    """
    target = target.resolve() if target.is_dir() else target
    temporary = target.with_name(f".{target.stem[:80]}.{secrets.token_hex(4)}.part")
    try:
        temporary.mkdir()
        # a file in the making is not called .safetensors, so that ComfyUI does not list it
        file = temporary / ("weights" if config is None else WEIGHTS_NAME)
        file.touch()
        mode = file.stat().st_mode
        save_file(tensors, file, metadata)
        file.chmod(mode)  # safetensors lets only the owner read what it writes
        sort_metadata(file)
        sync(file)
        if config is not None:
            text = json.dumps(config, indent=2) + "\n"
            (temporary / CONFIG_NAME).write_text(text, encoding="utf-8")
            sync(temporary / CONFIG_NAME)
            sync_names(temporary)
        whole = file if config is None else temporary
        _verify(whole, layers, stems, replaced, tensors)
        size = file.stat().st_size
        put_in_place(whole, target, overwrite)
        sync_names(target.parent)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise MergeError(f"{target.name} could not be written: {reason}; nothing was saved") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return size


def _verify_factors(whole: Lora, tensors: dict[str, Tensor]) -> None:
    """The same for the factors of (IA)3, which are no layers."""
    for key, wanted in tensors.items():
        if key.endswith(".ia3_l"):
            alike = (found for found in whole.base_dependent.values() if f"{found.key}.ia3_l" == key)
            expected = wanted.flatten().to(torch.float32) - 1
            if not any(torch.equal(found.tensors[0], expected) for found in alike):
                raise MergeError(f"{key} read back differs from what was merged; nothing was saved")


def _verify(
    path: Path, layers: dict[str, LowRank], stems: dict[str, str], replaced: dict[str, WholeWeight],
    tensors: dict[str, Tensor],
) -> None:  # fmt: skip
    """Read the file as anybody would, and require every layer, its bits and its scale."""
    whole = read_back(path)
    _verify_factors(whole, tensors)
    read = {
        (layer.key, _is_bias(name)): layer
        for name, layer in whole.layers.items()
        if isinstance(layer, LowRank)
    }
    if len(read) != len(layers) or len(whole.whole_weights) != len(replaced):
        raise MergeError(
            f"the file read back has {len(read)} layers instead of {len(layers)}; nothing was saved"
        )
    for name, weight in replaced.items():
        alike = (other for other in whole.whole_weights.values() if other.rows == weight.rows)
        if not any(_same_bits(other.value, weight.value.cpu()) for other in alike):
            raise MergeError(f"{name} read back differs from what was merged; nothing was saved")
    for name, layer in layers.items():
        found = read.get((stems[name], _is_bias(name)))
        if found is None:
            raise MergeError(f"{name} is not in the file read back; nothing was saved")
        same = _same_bits(found.up, layer.up.cpu()) and _same_bits(found.down, layer.down.cpu())
        if (
            not same
            or not math.isclose(found.scale, layer.scale, rel_tol=1e-6)
            or found.weight_shape != layer.weight_shape
        ):
            raise MergeError(f"{name} read back differs from what was merged; nothing was saved")


def _is_bias(name: str) -> bool:
    return name.endswith(".bias")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Compared as bytes, which is many times faster than as half precision numbers."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    one, other = (t.contiguous().flatten().view(torch.uint8).numpy() for t in (a, b))
    return np.array_equal(one, other)


def put_in_place(whole: Path, target: Path, overwrite: bool) -> None:
    """Give the finished file its name in one step; without ``overwrite`` a file that appeared is kept."""
    if whole.is_dir():
        if not target.is_dir():
            whole.rename(target)
        elif overwrite:
            _replace_folder(whole, target)
        else:
            raise ParameterError(EXISTS.format(target.name))
    elif overwrite:
        whole.replace(target)
    else:
        try:
            os.link(whole, target)
        except FileExistsError as error:
            raise ParameterError(EXISTS.format(target.name)) from error
        except OSError:  # a file system without hard links
            whole.rename(target)


def _replace_folder(whole: Path, target: Path) -> None:
    """Change folders, not files: new weights beside an old configuration would be read at a wrong scale.

    Whatever else is in the old folder moves into the new one.
    """
    aside = whole.with_name(f"{whole.stem}.old.part")
    target.rename(aside)
    try:
        whole.rename(target)
    finally:
        if target.is_dir():  # ours, or that of another process that was quicker
            for other in aside.iterdir():
                if other.name not in (WEIGHTS_NAME, CONFIG_NAME):
                    other.rename(target / other.name)
            shutil.rmtree(aside)
        else:
            aside.rename(target)


def sync(path: Path) -> None:
    """Have the disk hold a file before the next step relies on it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_names(folder: Path) -> None:
    """The same for the names in a folder, where the system can: a new name outlives a power cut."""
    with suppress(OSError):  # Windows opens no folders, and some network file systems sync none
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
