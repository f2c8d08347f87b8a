"""Structured inputs: a file or PEFT folder with its configuration, and what is done with it after loading.

A case is a JSON object, so that a mutator can change a shape, a role or a setting and leave the rest valid:

    {"tensors": {key: [dtype, shape, fill]}, "metadata": {key: value}, "config": {...} or null,
     "merge": {...}, "save": {...} or null}
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch

import merge_ops
from merge_ops.analysis.facts import describe
from merge_ops.formats.header import BITS

FILLS = {"ones": b"\x01", "zeros": b"\x00", "huge": b"\x7e", "mixed": bytes(range(1, 120, 7)), "nan": b"\xff"}
_MOST_ENTRIES = 4096
_BASES = {
    "none": lambda name: None,
    "eye": lambda name: torch.ones(2) if name.endswith(".bias") else torch.eye(2),
    "wide": lambda name: torch.ones(3) if name.endswith(".bias") else torch.ones(3, 2),
    "conv": lambda name: torch.ones(2, 2, 1, 1),
    "empty": lambda name: torch.ones(0, 2),
    "nan": lambda name: torch.full((2, 2), float("nan")),
}


def write_case(case: Any, folder: Path) -> Path:
    """Write the file or folder of a case; what is not of the form above is replaced by something that is."""
    case = case if isinstance(case, dict) else {}
    tensors, config = case.get("tensors"), case.get("config")
    raw = _container(tensors if isinstance(tensors, dict) else {}, case.get("metadata"))
    if config is None:
        path = folder / "case.safetensors"
        path.write_bytes(raw)
        return path
    path = folder / "case"
    path.mkdir(exist_ok=True)
    (path / "adapter_model.safetensors").write_bytes(raw)
    (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8", errors="replace")
    return path


def _container(tensors: dict[str, Any], metadata: Any) -> bytes:
    header: dict[str, Any] = {}
    data = b""
    for key, given in tensors.items():
        dtype, shape, fill = (
            (*given, None, None, None)[:3] if isinstance(given, list) else ("F32", [2, 2], "ones")
        )
        dtype = dtype if isinstance(dtype, str) and dtype in BITS else "F32"
        shape = [s for s in shape if type(s) is int and 0 <= s <= 64] if isinstance(shape, list) else []
        count = 1
        for side in shape:
            count *= side
        if count > _MOST_ENTRIES or (count * BITS[dtype]) % 8:
            shape, count = [2, 4], 8
        size = count * BITS[dtype] // 8
        pattern = FILLS.get(fill, b"\x3c") if isinstance(fill, str) else b"\x3c"
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += (pattern * (size // len(pattern) + 1))[:size]
    if isinstance(metadata, dict):
        texts = {key: each if isinstance(each, str) else json.dumps(each) for key, each in metadata.items()}
        header["__metadata__"] = texts
    raw = json.dumps(header).encode("utf-8", "replace")
    return struct.pack("<Q", len(raw)) + raw + data


def use_case(lora: merge_ops.Lora, case: Any, folder: Path) -> None:
    """Describe, merge and save what was loaded, and read it again; only a MergeError may be raised."""
    case = case if isinstance(case, dict) else {}
    how = case.get("merge") if isinstance(case.get("merge"), dict) else {}
    describe(lora)
    method = how.get("method")
    method = method if isinstance(method, str) and method in merge_ops.METHODS else "linear"
    known = {param.name for param in merge_ops.METHODS[method].params}
    params = {name: value for name, value in how.items() if name in known}
    base = _BASES.get(how.get("base")) if isinstance(how.get("base"), str) else None
    rank = how.get("rank") if type(how.get("rank")) is int else None
    space = "factors" if how.get("space") == "factors" else "delta"
    loras, weights = ([lora, lora], [1.0, 0.5]) if how.get("twice") else ([lora], [1.0])
    merged = merge_ops.merge(loras, weights, method, base=base, space=space, rank=rank, **params)
    for name in merged.layers:
        merged.delta(name)
    if how.get("report"):
        merged.report.to_dict()
    saved = case.get("save")
    if isinstance(saved, dict):
        form = saved.get("format") if isinstance(saved.get("format"), str) else "auto"
        target = folder / ("saved" if form == "peft" else "saved.safetensors")
        cut = saved.get("rank") if type(saved.get("rank")) is int else None
        dtype = torch.float16 if saved.get("half") else torch.float32
        merge_ops.save(merged, target, format=form, rank=cut, dtype=dtype, overwrite=True)
        merge_ops.load(target)
