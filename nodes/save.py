"""Save LoRA: a merge becomes a file that every loader reads."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from PIL import Image

from ..merge_ops.errors import MergeError, ParameterError
from ..merge_ops.formats.paths import WEIGHTS_NAME
from ..merge_ops.merging.rank_rule import RankRule
from ..merge_ops.names.parts import is_language_model
from ..merge_ops.saving.file_names import check_name
from .inputs import CATEGORY, DTYPES, LORA_MODEL
from .status import Said
from .values.pictures import as_data_address, picture_of, write_picture

_OUTSIDE = "filename_prefix must stay inside the output folder"
_NUMBER = "_{:05}_"  # what ComfyUI adds to the name of a file
_PREVIEW, _THUMBNAIL = 1024, 256  # pixels of the longest side
_FORMATS = ("auto", "kohya", "diffusers", "peft")


class LoraAlloySave(io.ComfyNode):
    """Writes into the output folder; its subfolder loras is one of ComfyUI's loras folders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LoraAlloySave",
            display_name="Save LoRA",
            category=CATEGORY,
            description=(
                "Save a merged LoRA as a file for Load LoRA, at strength 1. The file is read back and"
                " compared after writing, and it contains the recipe of the merge."
            ),
            search_aliases=["save lora", "export lora"],
            inputs=[
                LORA_MODEL.Input("lora", tooltip="The LoRA to save, from a merge node or any other "
                                                 "node that outputs LORA_MODEL."),
                io.String.Input(
                    "filename_prefix",
                    default="loras/merged",
                    tooltip=(
                        "Folder and name of the file below the output folder; a number is added. "
                        "Files in loras appear in Load LoRA at once."
                    ),
                ),
                io.Int.Input(
                    "rank", default=0, min=0, max=4096, optional=True, advanced=True,
                    tooltip=(
                        "Truncate to this rank. 0 saves a low-rank merge exactly and truncates a "
                        "full-rank one to the sum of the LoRAs' ranks."
                    ),
                ),
                io.Combo.Input(
                    "format", options=list(_FORMATS), default="auto", optional=True, advanced=True,
                    tooltip=(
                        "auto writes the key names that ComfyUI reads, or a PEFT folder for a "
                        "language model."
                    ),
                ),
                io.Combo.Input(
                    "dtype", options=list(DTYPES), default="float16", optional=True, advanced=True,
                    tooltip="Data type of the saved file.",
                ),
                io.Float.Input(
                    "energy", default=0, min=0, max=1, step=0.01, optional=True, advanced=True,
                    tooltip=(
                        "Choose the rank of each layer so that the smallest file keeps this share of the "
                        "merge: 0.95 keeps 95 %. rank is then the largest. 0 turns it off."
                    ),
                ),
                io.Float.Input(
                    "size_mb", default=0, min=0, max=100_000, step=1, optional=True, advanced=True,
                    tooltip=(
                        "Choose the rank of each layer so that the file has at most this size in MB and "
                        "keeps the most. rank is then the largest. 0 turns it off."
                    ),
                ),
                io.Image.Input(
                    "preview", optional=True,
                    tooltip=(
                        "Picture that lists and cards show for the file: the first of a batch is saved "
                        "beside it as .preview.png, and small in its metadata."
                    ),
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip=(
                "Path of the file, relative to the output folder."
            ))],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Refuse a name that nothing can be saved under before the merge is computed."""
        try:
            if filename_prefix is not None:  # None where another node makes it
                _check_prefix(filename_prefix)
        except ParameterError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        lora: dict[str, Any],
        filename_prefix: str,
        rank: int | None = None,
        format: str | None = None,
        dtype: str | None = None,
        energy: float | None = None,
        size_mb: float | None = None,
        preview: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        """Save under the next free number."""
        from ..merge_ops.merging.common_metadata import facts_of_use
        from ..merge_ops.saving import save
        from .model.merges.lora_model import read_lora_model
        from .model.merges.summary import list_left_out

        whole = read_lora_model(lora)
        if whole.merged is None:
            raise ParameterError("there is nothing to save: no LoRA was on")
        picture = _picture(preview)
        output = _check_prefix(filename_prefix)
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, output)
        bar = comfy.utils.ProgressBar(1)

        def progress(done: int, total: int, _layer: str) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)

        is_language = all(map(is_language_model, (*whole.merged.layers, *whole.merged.whole_weights)))
        asked = format or "auto"
        form = ("peft" if is_language else "kohya") if asked == "auto" else asked
        path = Path(folder) / (name + _NUMBER.format(counter) + ("" if form == "peft" else ".safetensors"))
        for_comfyui = form == "kohya" and (asked == "auto" or is_language)
        names = {"format": form, "stems": whole.stems if for_comfyui else None}
        thumbnail = {} if picture is None else {"modelspec.thumbnail": as_data_address(picture, _THUMBNAIL)}
        report = save(
            whole.merged, path, _rank(rank, energy, size_mb), dtype=DTYPES[dtype or "float16"],
            progress=progress, metadata=thumbnail, **names,
        )  # fmt: skip
        relative = (Path(subfolder) / path.name).as_posix()
        text = f"{relative}: {report.size / 1e6:.1f} MB, {report.format}, read back and compared"
        kept = [report.kept.sentence()]
        lines = [*whole.notes, *list_left_out(whole.merged), *facts_of_use(whole.merged.loras).contradictions]
        lines += _write_preview(picture, path)
        said = Said(text, kept + lines) if report.kept.is_low else Said("\n".join([text, *kept]), lines)
        return io.NodeOutput(relative, ui=said)


def _rank(rank: int | None, energy: float | None, size_mb: float | None) -> int | RankRule | None:
    if not energy and not size_mb:
        return rank or None
    size = int(size_mb * 10**6) if size_mb else None
    return RankRule(energy=energy or None, size=size, limit=rank or None)


def _picture(preview: torch.Tensor | None) -> Image.Image | None:
    """The first picture of a batch."""
    if preview is None:
        return None
    if preview.ndim != 4 or not preview.numel():
        raise ParameterError("preview holds no picture")
    return picture_of(preview[0], _PREVIEW)


def _write_preview(picture: Image.Image | None, path: Path) -> list[str]:
    """Write the picture where lists look for that of a LoRA; a line if there is one already, or it fails."""
    if picture is None:
        return []
    weights = path / WEIGHTS_NAME if path.is_dir() else path
    try:
        write_picture(picture, weights.with_name(f"{weights.stem}.preview.png"))
    except MergeError as error:
        return [f"the preview was not saved: {error}"]
    return []


def _check_prefix(filename_prefix: str) -> str:
    """Return ComfyUI's output folder, in which the prefix stays.

    Raises:
        ParameterError: for a prefix that leads out of it, or a name that some system cannot hold.
    """
    prefix = PurePosixPath(filename_prefix.replace("\\", "/"))
    if prefix.is_absolute() or ".." in prefix.parts or ":" in filename_prefix or "\0" in filename_prefix:
        raise ParameterError(_OUTSIDE)
    for part in (*prefix.parts, f"{prefix.name}{_NUMBER.format(0)}.safetensors"):
        check_name(part)
    output: str = folder_paths.get_output_directory()
    if not Path(output, prefix.parent).resolve().is_relative_to(Path(output).resolve()):  # by a link
        raise ParameterError(_OUTSIDE)
    return output
