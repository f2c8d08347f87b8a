"""Writing a base model with a merge in its weights, as a folder like the original."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import MergeError, ParameterError
from ..merging.merged import Merged
from ..recipes import Recipe
from ..saving.file_names import check_place
from ..saving.verified import put_in_place, sync, sync_names
from .folder import RECIPE, BaseModel, read_base
from .places import Place, find_places
from .streaming import FusedTensor, write_shard

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class FuseReport:
    """What was written, or would be in a dry run: changed tensors, files, and what was left out."""

    path: str
    fused: dict[str, str]  # tensor to layer
    changes: tuple[FusedTensor, ...]  # empty if nothing was written
    tensors: int  # of the whole model
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    size: int  # bytes
    misfits: dict[str, str]  # layer to why it was left out: its tensor has another shape

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def fuse(
    base: str | os.PathLike[str],
    merged: Merged,
    out: str | os.PathLike[str] | None,
    *,
    progress: Progress | None = None,
) -> FuseReport:
    """Write ``base`` with the merge added to its weights, as a folder that transformers loads.

    Shards, dtypes and names do not change. Tensors are read, changed and written one at a time, so memory
    holds one tensor, the delta of one layer, and the LoRAs. The other files of the base are copied, and
    ``lora_alloy.json`` holds the recipe of the merge. Every shard is read back and must match the computed
    result byte for byte before the folder gets its final name. On failure nothing is left behind.

    Args:
        base: a folder with ``config.json`` and ``model.safetensors``, or shards and their index.
        merged: what ``merge_ops.merge`` returned.
        out: the folder to write, which must not exist; None checks everything and writes nothing.
        progress: called as ``progress(done, total, tensor)``.

    Raises:
        LoraFormatError: if the base cannot be read.
        IncompatibleLoraError: if a layer has no weight in the base, or one that cannot take its delta, or if
            most layers have another shape; a few such layers are left out, and named in ``misfits``.
        ParameterError: if ``out`` exists, or its parent folder does not.
        MergeError: if a result overflows the dtype of the base, or the folder cannot be written.
    """
    model = read_base(base)
    places, misfits = find_places(model, merged)
    changes = () if out is None else _write_folder(model, merged, places, Path(out), progress)
    fused = {name: place.layer for name, place in places.items()}
    names = (*(shard.path.name for shard in model.shards), *(file.name for file in model.files), RECIPE)
    return FuseReport(
        "" if out is None else str(out), fused, changes, len(model.tensors), names, model.left_out,
        model.size, misfits,
    )  # fmt: skip


def _write_folder(
    model: BaseModel, merged: Merged, places: dict[str, Place], out: Path, progress: Progress | None
) -> tuple[FusedTensor, ...]:
    """Write next to the final folder, and rename once everything is there and verified."""
    _check_destination(model, out)
    changes: list[FusedTensor] = []
    temporary = out.with_name(f".{out.name[:80]}.{secrets.token_hex(4)}.part")
    try:
        temporary.mkdir()
        for shard in model.shards:
            report = _counted(progress, len(model.tensors), model.tensors_before(shard))
            changes += write_shard(shard, temporary / shard.path.name, places, merged, report)
        _copy_files(model, merged, temporary)
        put_in_place(temporary, out, overwrite=False)
        sync_names(out.parent)
    except OSError as error:
        reason = error.strerror or error
        raise MergeError(f"{out.name} could not be written: {reason}; nothing was saved") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if progress is not None:
        progress(len(model.tensors), len(model.tensors), "")
    return tuple(changes)


def check_fused(base: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Refuse a folder that ``fuse`` could not write, before anything is computed.

    Raises:
        LoraFormatError: if the base cannot be read.
        ParameterError: if ``out`` exists, its parent folder does not, or no folder can have its name.
        MergeError: if there is not enough room.
    """
    _check_destination(read_base(base), Path(out))


def _check_destination(model: BaseModel, out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise ParameterError(f"{out.name} already exists; choose another name")
    if out.suffix == ".safetensors":
        raise ParameterError(f"a fused model is a folder, so {out.name!r} must not end in .safetensors")
    check_place(out, overwrite=False)
    free = shutil.disk_usage(out.parent).free
    if free < model.size:
        raise MergeError(
            f"{out.name} needs {model.size / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free there"
        )


def _counted(progress: Progress | None, total: int, first: int) -> Callable[[int, str], None]:
    def report(done: int, tensor: str) -> None:
        if progress is not None:
            progress(first + done, total, tensor)

    return report


def _copy_files(model: BaseModel, merged: Merged, folder: Path) -> None:
    for file in model.files:
        shutil.copyfile(file, folder / file.name)
        sync(folder / file.name)
    (folder / RECIPE).write_text(Recipe.of(merged).to_json(indent=2) + "\n", encoding="utf-8")
    sync(folder / RECIPE)
    sync_names(folder)
