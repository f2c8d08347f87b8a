"""Which model the file of a loader holds, from its header alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import folder_paths
from safetensors import SafetensorError, safe_open

from ..core import recognise_checkpoint

FOLDERS = ("checkpoints", "diffusion_models")
_ENDINGS = (".safetensors", ".sft")
# ComfyUI's ``image_model`` -> our architecture. Models that merely resemble one of these are left out: a
# label greys files in the editor, so a wrong one does more harm than none.
_MODELS = {
    "flux2": "flux2",
    "pixart_alpha": "pixart",
    "pixart_sigma": "pixart",
    "qwen_image": "qwen",
    "wan2.1": "wan",
    "ltxv": "ltx",
    "hidream": "hidream",
    "chroma": "flux",  # LoRAs name its layers as those of Flux
}
_LONGCAT = 3584  # width of the text that a Flux of another maker reads
_LUMINA = {2304: "lumina2", 3840: "zimage"}  # by width
_UNETS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}  # by the width of the text


def architecture_of_file(folder: str, name: str) -> str | None:
    """Return our name for the architecture of the model in a file of one of FOLDERS; None if unknown."""
    path = folder_paths.get_full_path(folder, name)
    if path is None or not path.lower().endswith(_ENDINGS):
        return None
    state = Path(path).stat()
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _read(path: str, _changed: int, _size: int) -> str | None:
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    except (SafetensorError, OSError):
        return None
    return _architecture(recognise_checkpoint(shapes))


def _architecture(found: Mapping[str, Any]) -> str | None:
    """Our architecture for ComfyUI's configuration of a diffusion model."""
    kind = found.get("image_model")
    if kind == "flux":
        return None if found.get("context_in_dim") == _LONGCAT else "flux"
    if kind == "hunyuan_video":
        return "hunyuan" if found.get("vec_in_dim") and not found.get("vision_in_dim") else None
    if kind == "lumina2":
        return _LUMINA.get(found.get("dim", 0))
    if kind is not None:
        return _MODELS.get(kind)
    if "context_dim" in found and not found.get("use_temporal_attention"):
        return _UNETS.get(found["context_dim"])
    if "pos_embed_scaling_factor" in found:
        return "sd3"
    return "auraflow" if "cond_seq_dim" in found else None
