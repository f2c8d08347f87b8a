"""Writing a base model with a merge in its weights: a folder or a single file like the original."""

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
from ..progress import Progress
from ..recipes import Recipe
from ..saving.file_names import check_new, check_place
from ..saving.verified import put_in_place, sync, sync_names
from .base_model import RECIPE, BaseModel
from .checkpoint_places import find_checkpoint_places
from .folder import read_base
from .places import Places, find_places
from .single_file import header_of_fused, left_out_of_header
from .streaming import FusedTensor, write_shard

_MORE_HEADER = 1 << 20  # bytes of room for what a header gets


@dataclass(frozen=True, slots=True)
class FuseReport:
    """What was written, or would be in a dry run: changed tensors, files, and what was left out."""

    path: str
    fused: dict[str, str]  # tensor to layer; a tensor inside a diffusers folder begins with its part
    changes: tuple[FusedTensor, ...]  # empty if nothing was written
    tensors: int  # of the whole model
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    size: int  # bytes
    misfits: dict[str, str]  # layer to why it was left out: its tensor has another shape, or there is none

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
    """Write ``base`` with the merge added to its weights, in the layout of the base.

    The base is a single file of a diffusion model (a whole checkpoint or a denoiser, in ComfyUI's layout or
    in that of diffusers), a diffusers folder, or a transformers folder. Files, dtypes, names and the order of
    tensors do not change, and every tensor that the merge does not change keeps its bytes. Tensors are
    read, changed and written one at a time, so memory holds one tensor, the delta of one layer, and the
    LoRAs. The other files of a folder are copied. The recipe of the merge is in ``lora_alloy.json`` of a
    folder, and in the metadata of a file. Everything is read back and must match the computed result byte
    for byte before it gets its final name. On failure nothing is left behind.

    Weights are computed in float32 and rounded as ComfyUI rounds the weights that it patches. In float32,
    float16 and bfloat16 they have its bits; so they have in fp8 in ComfyUI's layout, which it rounds at
    random by a fixed seed, if it runs on a CPU. An fp8 weight with a scale gets a fresh scale.

    Args:
        base: a ``.safetensors`` file; a folder with ``model_index.json``; one with ``config.json`` and
            ``model.safetensors``, or shards and their index.
        merged: what ``merge_ops.merge`` returned.
        out: the file or folder to write, which must not exist; None checks everything and writes nothing.
        progress: called as ``progress(done, total, tensor)``.

    Raises:
        LoraFormatError: if the base cannot be read.
        IncompatibleLoraError: if a layer has a weight that cannot take its delta, or if most layers do not
            fit; a few such layers are left out, and named in ``misfits``. In a transformers folder also if a
            layer has no weight.
        ParameterError: if ``out`` exists, or its parent folder does not.
        MergeError: if a result overflows the dtype of the base, or the result cannot be written.
    """
    model = read_base(base)
    if merged.ia3:
        raise ParameterError(
            "the LoRAs hold (IA)3 factors, whose change depends on the base model; merge them with base="
        )
    find = find_places if model.kind == "transformers" else find_checkpoint_places
    places, misfits = find(model, merged)
    changes = () if out is None else _write(model, merged, places, Path(out), progress)
    fused = {
        "/".join(filter(None, key)): " + ".join(place.layer for place in each) for key, each in places.items()
    }
    files = [*(shard.path for shard in model.shards), *model.files]
    names = [str(model.inside(file)) for file in files] + [RECIPE] * (model.kind != "file")
    left_out = model.left_out if model.kind != "file" else left_out_of_header(model.shards[0])
    return FuseReport(
        "" if out is None else str(out), fused, changes, model.count, tuple(names), left_out, model.size,
        misfits,
    )  # fmt: skip


def _write(
    model: BaseModel, merged: Merged, places: Places, out: Path, progress: Progress | None
) -> tuple[FusedTensor, ...]:
    """Write next to the target, and rename once everything is there and verified."""
    _check_destination(model, out)
    changes: list[FusedTensor] = []
    is_file = model.kind == "file"
    temporary = out.with_name(f".{out.name[:80]}.{secrets.token_hex(4)}.part")
    try:
        temporary.mkdir()
        for shard in model.shards:
            report = _counted(progress, model.count, model.tensors_before(shard))
            # an unfinished file does not end in .safetensors, so that ComfyUI does not list it
            target = temporary / ("weights" if is_file else model.inside(shard.path))
            target.parent.mkdir(parents=True, exist_ok=True)
            header = header_of_fused(shard, merged, model.path.name) if is_file else None
            changes += write_shard(shard, target, places, merged, report, header)
        if not is_file:
            _copy_files(model, merged, temporary)
        put_in_place(temporary / "weights" if is_file else temporary, out, overwrite=False)
        sync_names(out.parent)
    except OSError as error:
        reason = error.strerror or error
        raise MergeError(f"{out.name} could not be written: {reason}; nothing was saved") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if progress is not None:
        progress(model.count, model.count, "")
    return tuple(changes)


def check_fused(base: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Refuse a file or folder that ``fuse`` could not write, before anything is computed.

    Raises:
        LoraFormatError: if the base cannot be read.
        ParameterError: if ``out`` exists, its parent folder does not, or nothing can have its name.
        MergeError: if there is not enough room.
    """
    _check_destination(read_base(base), Path(out))


def _check_destination(model: BaseModel, out: Path) -> None:
    check_new(out)
    if model.kind == "file" and out.suffix != ".safetensors":
        raise ParameterError(f"a fused checkpoint is a file, so {out.name!r} must end in .safetensors")
    if model.kind != "file" and out.suffix == ".safetensors":
        raise ParameterError(f"a fused model is a folder, so {out.name!r} must not end in .safetensors")
    check_place(out, overwrite=False)
    free, needed = shutil.disk_usage(out.parent).free, model.size + _MORE_HEADER
    if free < needed:
        raise MergeError(
            f"{out.name} needs {needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free there"
        )


def _counted(progress: Progress | None, total: int, first: int) -> Callable[[int, str], None]:
    def report(done: int, tensor: str) -> None:
        if progress is not None:
            progress(first + done, total, tensor)

    return report


def _copy_files(model: BaseModel, merged: Merged, folder: Path) -> None:
    for file in model.files:
        target = folder / model.inside(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        sync(target)
    (folder / RECIPE).write_text(Recipe.of(merged).to_json(indent=2) + "\n", encoding="utf-8")
    sync(folder / RECIPE)
    for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_names(place)
