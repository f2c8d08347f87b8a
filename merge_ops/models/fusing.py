"""Writing a base model with a merge in its weights, as a folder like the one it came in."""

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
from ..saving.verified import put_in_place, sync, sync_names
from .folder import RECIPE, BaseModel, read_base
from .placing import Target, find_targets
from .streaming import FusedTensor, write_shard

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class FuseReport:
    """What was written, or would be: the changed tensors of how many, files, and what was left out."""

    path: str
    fused: dict[str, str]  # tensor to layer
    changes: tuple[FusedTensor, ...]  # empty where nothing was written
    tensors: int
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    size: int  # bytes

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def fuse(
    base: str | os.PathLike[str],
    merged: Merged,
    out: str | os.PathLike[str] | None,
    *,
    progress: Progress | None = None,
) -> FuseReport:
    """Write ``base`` with the merge added to its weights, as a folder that transformers loads.

    Shards, dtypes and names stay as they are; tensors are read, changed and written one at a time, so memory
    holds one of them, the delta of one layer, and the LoRAs. The other files of the base are copied, and
    ``lora_alloy.json`` holds the recipe of the merge. Every shard is read back and must be, byte for byte,
    what was computed; only then does the folder get its name. Nothing is left behind on failure.

    Args:
        base: a folder with ``config.json`` and ``model.safetensors``, or shards and their index.
        merged: what ``merge_ops.merge`` returned.
        out: the folder to write, which must not exist; None checks everything and writes nothing.
        progress: called as ``progress(done, total, tensor)``.

    Raises:
        LoraFormatError: if the base cannot be read.
        IncompatibleLoraError: if a layer has no weight in the base, or one that it cannot be added to.
        ParameterError: if ``out`` exists, or its parent does not.
        MergeError: if a result does not fit into the dtype of the base, or the disk does not take it.
    """
    model = read_base(base)
    targets = find_targets(model, merged)
    changes = () if out is None else _write_folder(model, merged, targets, Path(out), progress)
    fused = {name: target.layer for name, target in targets.items()}
    names = (*(shard.path.name for shard in model.shards), *(file.name for file in model.files), RECIPE)
    return FuseReport(
        "" if out is None else str(out), fused, changes, len(model.tensors), names, model.left_out,
        model.size,
    )  # fmt: skip


def _write_folder(
    model: BaseModel, merged: Merged, targets: dict[str, Target], out: Path, progress: Progress | None
) -> tuple[FusedTensor, ...]:
    """Write beside the target, and rename when all is there and verified."""
    _check_target(model, out)
    changes: list[FusedTensor] = []
    temporary = out.with_name(f".{out.name[:80]}.{secrets.token_hex(4)}.part")
    try:
        temporary.mkdir()
        for shard in model.shards:
            report = _counted(progress, len(model.tensors), model.first_of(shard))
            changes += write_shard(shard, temporary / shard.path.name, targets, merged, report)
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


def _check_target(model: BaseModel, target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise ParameterError(f"{target.name} exists already; choose another name")
    if not target.parent.is_dir():
        raise ParameterError(f"the folder {target.parent.name!r} does not exist; make it first")
    free = shutil.disk_usage(target.parent).free
    if free < model.size:
        raise MergeError(
            f"{target.name} takes {model.size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there"
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
