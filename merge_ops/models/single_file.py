"""The header of a single file with a merge in its weights: the tensors as they were, and the recipe."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from ..formats.shard import Shard
from ..merging.merged import Merged
from ..recipes import Recipe

RECIPE_KEY = "lora_alloy"
_BEFORE = "lora_alloy_base"  # the recipe of a base that has a merge in its weights already
_MERGED_FROM = "modelspec.merged_from"
_HASHES = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")  # of other weights
_ALIGNMENT = 8  # bytes to which the format aligns the data


def header_of_fused(shard: Shard, merged: Merged, base_name: str) -> bytes:
    """Return the header with its length: the tensors of the shard, its metadata and the recipe.

    Hashes of the base's weights are left out, since they would be wrong.
    """
    header = json.loads(shard.header[8:])
    metadata = {key: text for key, text in shard.metadata.items() if key not in _HASHES}
    if RECIPE_KEY in metadata:
        earlier = metadata.pop(RECIPE_KEY)
        metadata[_BEFORE] = f"{metadata[_BEFORE]}\n{earlier}" if _BEFORE in metadata else earlier
    names = ", ".join((Path(base_name).stem, *(lora.name for lora in merged.loras)))
    metadata |= {RECIPE_KEY: Recipe.of(merged).to_json(), _MERGED_FROM: names}
    header.pop("__metadata__", None)
    text = json.dumps(
        {"__metadata__": metadata, **header}, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def left_out_of_header(shard: Shard) -> tuple[str, ...]:
    """Return the metadata of the base that would be wrong for a fused file."""
    return tuple(f"metadata {key}" for key in _HASHES if key in shard.metadata)
