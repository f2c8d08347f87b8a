"""The fuzzed code, readers of files and of PEFT configurations, and the promises that are checked."""

from __future__ import annotations

import os
import resource
import struct
import sys
import tempfile
import time
from pathlib import Path

from cases import use_case, write_case
from mutate import parsed

import merge_ops

CONTAINER, HEADER, CONFIG, CASE = range(4)  # the first byte of an input, modulo 4
SECONDS = 60  # that any input may take, on a busy machine
SPACE = 64 << 20  # memory that any input may take, in addition to ten times its own size
_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {  # by the kind of PEFT adapter
    "LOHA": {f"hada_w{i}_{half}": (2, 2) for i in (1, 2) for half in "ab"},
    "LOKR": {"lokr_w1": (2, 2), "lokr_w2": (1, 1)},
    "IA3": {"ia3_l": (2, 1)},
    "BOFT": {"boft_R": (1, 1, 2, 2), "boft_s": (2, 1)},
    "OFT": {"oft_R.weight": (1, 1)},
    "LORA": {"lora_A.weight": (2, 2), "lora_B.weight": (2, 2), "lora_magnitude_vector": (2,)},
}


class Promise(AssertionError):
    """A promise about every input does not hold for this one."""


def one_input(data: bytes) -> None:
    """Read one input as its first byte selects; anything but a Lora or a MergeError escapes."""
    if not data:
        return
    kind, rest = data[0] % 4, data[1:]
    case = parsed(rest) if kind == CASE else None
    path = _FOLDER / "x.safetensors"
    if kind == CONTAINER:
        path.write_bytes(rest)
    elif kind == HEADER:  # a header of the right length, which random bytes rarely have, and data behind it
        header, _, body = rest.partition(b"\0")
        path.write_bytes(struct.pack("<Q", len(header)) + header + body)
    elif kind == CASE:
        path = write_case(case, _FOLDER)
    else:
        path = _folder_with(rest)
    started = time.monotonic()
    try:
        lora = merge_ops.load(path)
        _check_layers(lora)
        if kind == CASE:
            use_case(lora, case, _FOLDER)
        else:
            _merge(lora)
    except merge_ops.MergeError as error:
        _check_message(str(error))
    if time.monotonic() - started > SECONDS:
        raise Promise(f"{time.monotonic() - started:.0f} seconds for an input of {len(data)} bytes")
    _SEEN.append(len(data))
    if len(_SEEN) >= _ASKED:
        check_memory()


def _folder_with(config: bytes) -> Path:
    """Make a folder with tensors of the kind that the configuration names, and with whole weights."""
    folder = _FOLDER / next((kind for kind in _SHAPES if f'"{kind}"'.encode() in config), "LORA")
    if not folder.is_dir():
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(_ones(_SHAPES[folder.name]))
    (folder / "adapter_config.json").write_bytes(config)
    return folder


def _ones(shapes: dict[str, tuple[int, ...]]) -> bytes:
    import torch
    from safetensors.torch import save

    names = {f"a.q.{end}": shape for end, shape in shapes.items()}
    names |= {f"b.v.{end}": shape for end, shape in shapes.items()} | {
        "head.weight": (2, 2),
        "b.v.bias": (2,),
    }
    return bytes(save({f"base_model.model.{name}": torch.ones(shape) for name, shape in names.items()}))


def _check_message(message: str) -> None:
    if not message or "\n" in message or len(message) > 2000:
        raise Promise(f"not one sentence: {message[:300]!r}")
    if "does not fit into memory" in message:
        raise Promise(message)


def _check_layers(lora: merge_ops.Lora) -> None:
    if not (lora.layers or lora.base_dependent or lora.whole_weights):
        raise Promise("a LoRA without a layer")
    for name, layer in lora.layers.items():
        if tuple(layer.delta().shape) != layer.weight_shape:
            raise Promise(f"the delta of {name} has a shape other than declared")


def _merge(lora: merge_ops.Lora) -> None:
    """Merge, with a small base for the adapters that need one; only a MergeError may be raised."""
    import torch

    merged = merge_ops.merge([lora], base=lambda name: torch.ones(2) if "bias" in name else torch.eye(2))
    for name in merged.layers:
        merged.delta(name)


def _peak() -> int:
    """Return the peak memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def check_memory() -> None:
    """Compare the peak of memory with what the inputs since the last time may take."""
    allowed, before, _PEAKS[0] = 10 * sum(_SEEN) + SPACE, _PEAKS[0], _peak()
    inputs = len(_SEEN)
    _SEEN.clear()
    if _PEAKS[0] - before > allowed:
        raise Promise(f"{(_PEAKS[0] - before) >> 20} MB of memory for the last {inputs} inputs")


_PEAKS = [_peak()]
_SEEN: list[int] = []  # the sizes of the inputs since
_ASKED = 20  # inputs between two times: asking takes longer than most of them


def clean() -> None:
    """Remove the files."""
    for root, _, names in os.walk(_FOLDER, topdown=False):
        for name in names:
            (Path(root) / name).unlink()
        Path(root).rmdir()
