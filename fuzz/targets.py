"""What is fuzzed: the readers of files and of PEFT configurations, and the promises that are checked."""

from __future__ import annotations

import os
import resource
import struct
import sys
import tempfile
from pathlib import Path

import merge_ops

CONTAINER, HEADER, CONFIG = range(3)  # the first byte of an input, modulo 3
SPACE = 64 << 20  # of memory that an input of any size may take, besides ten times its own
_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


class Promise(AssertionError):
    """Something that is promised of every input does not hold for this one."""


def one_input(data: bytes) -> None:
    """Read one input as its first byte says; anything but a Lora or a MergeError escapes."""
    if not data:
        return
    kind, rest = data[0] % 3, data[1:]
    path = _FOLDER / "x.safetensors"
    if kind == CONTAINER:
        path.write_bytes(rest)
    elif kind == HEADER:  # a header of the right length, which random bytes rarely have, and data behind it
        header, _, body = rest.partition(b"\0")
        path.write_bytes(struct.pack("<Q", len(header)) + header + body)
    else:
        path = _folder_with(rest)
    before = _peak()
    try:
        lora = merge_ops.load(path)
    except merge_ops.MergeError as error:
        _check_message(str(error))
    else:
        _check_layers(lora)
    if _peak() - before > 10 * len(data) + SPACE:
        raise Promise(f"{(_peak() - before) >> 20} MB of memory for an input of {len(data)} bytes")


def _folder_with(config: bytes) -> Path:
    folder = _FOLDER / "adapter"
    if not folder.is_dir():
        folder.mkdir()
        names = [
            f"base_model.model.{module}.lora_{half}.weight" for module in ("a.q", "b.v") for half in "AB"
        ]
        (folder / "adapter_model.safetensors").write_bytes(_ones(names))
    (folder / "adapter_config.json").write_bytes(config)
    return folder


def _ones(names: list[str]) -> bytes:
    import torch
    from safetensors.torch import save

    return bytes(save({name: torch.ones(2, 2) for name in names}))


def _check_message(message: str) -> None:
    if not message or "\n" in message or len(message) > 2000:
        raise Promise(f"not one sentence: {message[:300]!r}")
    if "does not fit into memory" in message:
        raise Promise(message)


def _check_layers(lora: merge_ops.Lora) -> None:
    if not lora.layers:
        raise Promise("a LoRA without a layer")
    for name, layer in lora.layers.items():
        if layer.up.shape[1] != layer.down.shape[0]:
            raise Promise(f"the factors of {name} do not fit")


def _peak() -> int:
    """The most memory that this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def clean() -> None:
    """Take the files away."""
    for root, _, names in os.walk(_FOLDER, topdown=False):
        for name in names:
            (Path(root) / name).unlink()
        Path(root).rmdir()
