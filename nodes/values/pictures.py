"""Pictures from ComfyUI's images, and as files beside a LoRA. Needs Pillow only."""

from __future__ import annotations

import base64
import io
import secrets
from pathlib import Path

import torch
from PIL import Image

from ...merge_ops.errors import MergeError


def picture_of(frame: torch.Tensor, longest: int) -> Image.Image:
    """Return a frame ``(height, width, 1, 3 or 4)`` from 0 to 1 as RGB, made smaller if it is too large."""
    values = frame.detach().cpu().float().nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8)
    colours = values[..., :3] if values.shape[-1] >= 3 else values[..., :1].expand(-1, -1, 3)
    picture = Image.fromarray(colours.contiguous().numpy())
    if longest and max(picture.size) > longest:
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return picture


def as_data_address(picture: Image.Image, longest: int) -> str:
    """Return a small JPEG of a picture as ``data:image/jpeg;base64,...``."""
    small = picture.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    raw = io.BytesIO()
    small.save(raw, "JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(raw.getvalue()).decode()}"


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG under its name in one step, so that there is never half a file.

    Raises:
        ParameterError: if a file has the name already; it is kept.
        MergeError: if it cannot be written.
    """
    from ...merge_ops.saving.verified import put_in_place, sync

    temporary = path.with_name(f".{path.stem[:80]}.{secrets.token_hex(4)}.part")
    try:
        picture.save(temporary, "PNG", optimize=True)
        sync(temporary)
        put_in_place(temporary, path, overwrite=False)
    except OSError as error:
        raise MergeError(f"{path.name} could not be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
