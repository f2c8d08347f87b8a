"""Writing that proves itself: beside the target, read back with our own reader, compared, then renamed."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import MergeError, ParameterError
from ..types import LowRank
from .container import sort_metadata
from .peft_config import CONFIG_NAME
from .read import WEIGHTS_NAME, load

EXISTS = "{} exists already; choose another name, or ask to overwrite it"


def write_verified(
    target: Path, tensors: dict[str, Tensor], metadata: dict[str, str], config: dict[str, Any] | None,
    layers: dict[str, LowRank], stems: dict[str, str], overwrite: bool,
) -> int:  # fmt: skip
    """Write next to the target, verify, rename; return the size in bytes."""
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.part{target.suffix}")
    try:
        if config is None:
            file = temporary
        else:
            temporary.mkdir()
            file = temporary / WEIGHTS_NAME
            text = json.dumps(config, indent=2) + "\n"
            (temporary / CONFIG_NAME).write_text(text, encoding="utf-8")
        file.touch()
        mode = file.stat().st_mode
        save_file(tensors, file, metadata)
        file.chmod(mode)  # safetensors lets only the owner read what it writes
        sort_metadata(file)
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
        _verify(temporary, layers, stems)
        size = file.stat().st_size
        _put_in_place(temporary, target, overwrite)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
    return size


def _verify(path: Path, layers: dict[str, LowRank], stems: dict[str, str]) -> None:
    """Read the file as anybody would, and require every layer, its bits and its scale."""
    read = {layer.key: layer for layer in load(path).layers.values()}
    if read.keys() != set(stems.values()):
        raise MergeError(
            f"the file read back has {len(read)} layers instead of {len(stems)}; nothing was saved"
        )
    for name, layer in layers.items():
        found = read[stems[name]]
        same = _same_bits(found.up, layer.up.cpu()) and _same_bits(found.down, layer.down.cpu())
        if (
            not same
            or not math.isclose(found.scale, layer.scale, rel_tol=1e-6)
            or found.weight_shape != layer.weight_shape
        ):
            raise MergeError(f"{name} read back differs from what was merged; nothing was saved")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Compared as bytes, which is many times faster than as half precision numbers."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    one, other = (t.contiguous().view(torch.uint8).numpy() for t in (a, b))
    return np.array_equal(one, other)


def _put_in_place(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give the finished file its name in one step; without ``overwrite`` a file that appeared is kept."""
    if temporary.is_dir():
        if not target.is_dir():
            temporary.rename(target)
            return
        if not overwrite:
            raise ParameterError(EXISTS.format(target.name))
        for name in (WEIGHTS_NAME, CONFIG_NAME):  # whatever else is in the folder stays
            (temporary / name).replace(target / name)
    elif overwrite:
        temporary.replace(target)
    else:
        try:
            os.link(temporary, target)
        except FileExistsError as error:
            raise ParameterError(EXISTS.format(target.name)) from error
        except OSError:  # a file system without hard links
            temporary.rename(target)
