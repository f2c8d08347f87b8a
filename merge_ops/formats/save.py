"""Saving that proves itself: write beside the target, read back with our own reader, compare, then rename."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import MergeError, ParameterError, did_you_mean
from ..linalg import product_inner
from ..merged import Merged, MergedLayer
from ..recipe import recipe_of
from ..types import LowRank
from .container import is_finite
from .peft_config import CONFIG_NAME
from .read import WEIGHTS_NAME, load
from .write import FORMATS, file_metadata, file_tensors, module_names, peft_config, resolve_format

_HALF = (torch.float16, torch.bfloat16)
_DTYPES = (*_HALF, torch.float32)


@dataclass(frozen=True, slots=True)
class SavedLayer:
    """One layer of a saved file: its rank, and the relative Frobenius error of its delta."""

    name: str
    rank: int
    energy_kept: float
    error: float


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What was written, and how far the file is from the merge: truncation and rounding together.

    Errors are relative Frobenius norms: ``largest_error`` of the worst layer, ``total_error`` of all.
    """

    path: str
    format: str
    layers: tuple[SavedLayer, ...]
    largest_error: float
    total_error: float
    size: int  # bytes

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def save(
    merged: Merged,
    path: str | os.PathLike[str],
    rank: int | None = None,
    format: str = "auto",
    dtype: torch.dtype = torch.float16,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> SaveReport:
    """Write a merge as a LoRA file that other tools load at strength 1.

    Args:
        merged: what ``merge`` returned.
        path: a ``.safetensors`` file, or for ``format='peft'`` a folder.
        rank: truncate to this rank. None writes low-rank layers exactly and truncates full-rank ones to the
            sum of the source ranks, which is the size of a linear merge.
        format: ``kohya``, ``diffusers``, ``peft``, or ``auto``: as the first LoRA of the merge.
        dtype: float16, bfloat16 or float32.
        overwrite: replace an existing file; otherwise it is left alone and an error is raised.
        progress: called as ``progress(done, total, layer)``.

    The file is read back and must hold, bit for bit, what was computed; only then does it get its name.
    Nothing is left behind on failure.

    Raises:
        ParameterError: for an unknown format or dtype, a wrong suffix, or an existing file.
        MergeError: if the format cannot hold the layers, or the file read back differs.
    """
    target, form = Path(path), resolve_format(format, merged.loras[0])
    _check_request(target, form, rank, dtype, overwrite)
    stems = module_names(merged.layers, form, merged.loras)
    layers: dict[str, LowRank] = {}
    saved, squares = [], [0.0, 0.0]
    for done, name in enumerate(merged.layers):
        if progress is not None:
            progress(done, len(merged.layers), name)
        layers[name], line, error, norm = _round(name, merged.layer(name), rank, dtype)
        saved.append(line)
        squares = [squares[0] + error, squares[1] + norm]
    recipe = recipe_of(merged, rank)
    tensors = file_tensors(layers, stems, form)
    metadata = file_metadata(layers, form, merged.loras, recipe, target.stem)
    config = peft_config(layers, stems, merged.loras) if form == "peft" else None
    size = _write_verified(target, tensors, metadata, config, layers, stems, overwrite)
    if progress is not None:
        progress(len(merged.layers), len(merged.layers), "")
    largest = max(line.error for line in saved)
    total = math.sqrt(squares[0] / squares[1]) if squares[1] else 0.0
    return SaveReport(str(target), form, tuple(saved), largest, total, size)


def _check_request(target: Path, form: str, rank: int | None, dtype: torch.dtype, overwrite: bool) -> None:
    if form not in FORMATS:
        raise ParameterError(f"unknown format {form!r}{did_you_mean(form, ('auto', *FORMATS))}")
    if dtype not in _DTYPES:
        raise ParameterError(f"cannot save as {dtype}; use float16, bfloat16 or float32")
    if rank is not None and rank < 1:
        raise ParameterError(f"rank must be 1 or more, not {rank}")
    if form != "peft" and target.suffix != ".safetensors":
        raise ParameterError(
            f"{target.name!r} must end in .safetensors (or save a folder with format='peft')"
        )
    if form == "peft" and target.suffix == ".safetensors":
        raise ParameterError(
            f"format 'peft' writes a folder, so {target.name!r} must not end in .safetensors"
        )
    if not target.parent.is_dir():
        raise ParameterError(f"the folder {target.parent.name!r} does not exist; make it first")
    if target.exists() and not overwrite:
        raise ParameterError(f"{target.name} exists already; choose another name, or ask to overwrite it")


def _round(
    name: str, layer: MergedLayer, rank: int | None, dtype: torch.dtype
) -> tuple[LowRank, SavedLayer, float, float]:
    """The layer in the file's rank and dtype, its line of the report, its squared error and norm."""
    exact = layer.value()
    limit = rank if rank is not None else sum(layer.stack.ranks)
    kept = 1.0
    if isinstance(exact, tuple) and exact[1].shape[0] <= limit:
        up, down = exact
    else:
        found = layer.svd(limit, exact)
        (up, down), kept = found.balanced(), found.energy_kept
    up, down = _balance(up, down)
    stored = LowRank(up.to(dtype), down.to(dtype), 1.0, layer.template.layout, layer.template.kernel)
    if not (is_finite(stored.up) and is_finite(stored.down)):
        raise MergeError(f"{name} does not fit into {dtype}; save it with dtype=torch.float32")
    error, norm = _squared_error(exact, stored)
    relative = math.sqrt(error / norm) if norm else 0.0
    return stored, SavedLayer(name, stored.rank, layer.energy_kept * kept, relative), error, norm


def _balance(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Even out each column of ``up`` and row of ``down`` by a power of two.

    That is exact, and it keeps half precision away from its smallest numbers.
    """
    sizes_up, sizes_down = up.norm(dim=0), down.norm(dim=1)
    ratio = torch.where((sizes_up > 0) & (sizes_down > 0), sizes_down / sizes_up, torch.ones_like(sizes_up))
    factor = torch.exp2((ratio.log2() / 2).round())
    return up * factor, down / factor[:, None]


def _squared_error(exact: Tensor | tuple[Tensor, Tensor], stored: LowRank) -> tuple[float, float]:
    """Squared Frobenius norms of (stored - merged) and of merged, in float64; a matrix is used up."""
    pair = stored.up.float(), stored.down.float()
    if isinstance(exact, tuple):
        norm = product_inner(exact, exact)
        difference = torch.cat((exact[0], -pair[0]), dim=1), torch.cat((exact[1], pair[1]))
        return max(product_inner(difference, difference), 0.0), norm
    norm = float(torch.linalg.vector_norm(exact, dtype=torch.float64)) ** 2
    rest = exact.addmm_(pair[0], pair[1], alpha=-1)
    return float(torch.linalg.vector_norm(rest, dtype=torch.float64)) ** 2, norm


def _write_verified(
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
        save_file(tensors, file, metadata)
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
    """Read the file as anybody would, and require every layer, its bits and scale 1."""
    read = {layer.key: layer for layer in load(path).layers.values()}
    if read.keys() != set(stems.values()):
        raise MergeError(
            f"the file read back has {len(read)} layers instead of {len(stems)}; nothing was saved"
        )
    for name, layer in layers.items():
        found = read[stems[name]]
        same = torch.equal(found.up, layer.up.cpu()) and torch.equal(found.down, layer.down.cpu())
        if (
            not same
            or not math.isclose(found.scale, 1.0, rel_tol=1e-6)
            or found.weight_shape != layer.weight_shape
        ):
            raise MergeError(f"{name} read back differs from what was merged; nothing was saved")


def _put_in_place(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give the finished file its name in one step; without ``overwrite`` a file that appeared is kept."""
    if temporary.is_dir():
        if overwrite and target.is_dir():
            shutil.rmtree(target)
        temporary.rename(target)
    elif overwrite:
        temporary.replace(target)
    else:
        try:
            os.link(temporary, target)
        except FileExistsError as error:
            raise ParameterError(
                f"{target.name} exists already; choose another name, or ask to overwrite it"
            ) from error
