"""Files mistaken for LoRAs: each is named for what it is, by its first bytes or its keys."""

from __future__ import annotations

from collections.abc import Collection

from ..adapters.named import shows_adapter
from ..errors import LoraFormatError
from ..names.architectures import CHECKPOINTS
from .other_tools import named_tool

PICKLE = (
    "this is a pickle, which can run code when it is opened; convert it to .safetensors first, or have only "
    "its tensors read, with allow_pickle=True (--allow-pickle on the command line)"
)
_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_GGML = (b"ggla", b"algg", b"lmgg", b"tjgg")
# in the keys of adapters of kinds that we do not read
_FOREIGN = ("lora", "lycoris", "vera_", "hra_", "oft_", "ia3_")


def refuse_by_bytes(start: bytes, size: int) -> None:
    """Raise LoraFormatError if a file that begins like this is known to be no safetensors file."""
    if start[8:9] == b"{":  # a safetensors header; the length before it may begin with any byte, "<" as well
        return
    if start.startswith(b"version https://git-lfs"):
        raise LoraFormatError(
            f"this is a Git-LFS pointer of {size} bytes, not the file itself; "
            "run 'git lfs pull' or download it"
        )
    if start[30:64].find(b".npy") > 0:
        raise LoraFormatError(
            "this is a NumPy archive (.npz), as older adapters of MLX are; convert it to .safetensors"
        )
    if start.startswith(_GGML):
        raise LoraFormatError(
            "this is an adapter of an early llama.cpp (GGML); use the LoRA it was made from"
        )
    if start.startswith(b"GGUF"):
        raise LoraFormatError("this is a GGUF file; quantised adapters are not supported")
    if start.lstrip()[:1] == b"<":
        raise LoraFormatError("this is a web page, not a safetensors file; download it again")
    if start.startswith(_PICKLED):
        raise LoraFormatError(PICKLE)
    if len(start) < 8:
        raise LoraFormatError(
            f"the file has only {size} bytes and is not a safetensors file; download it again"
        )


def refuse_by_keys(keys: Collection[str]) -> None:
    """Raise LoraFormatError if the keys are those of another kind of model, before its data is read."""
    if "lora_controlnet" in keys:
        raise LoraFormatError("this is a ControlNet-LoRA, a control model; load it as a ControlNet")
    if any(".quant_state." in key or key.endswith(".absmax") for key in keys):
        raise LoraFormatError("the file is quantised by bitsandbytes; quantised adapters are not supported")
    if (tool := named_tool(keys)) is not None:
        raise LoraFormatError(tool)
    named = sum(key.endswith((".weight", ".bias")) for key in keys)
    if (
        any(key.startswith(CHECKPOINTS) for key in keys)
        and named * 2 > len(keys)
        and not any(shows_adapter(key) or any(mark in key for mark in _FOREIGN) for key in keys)
    ):
        raise LoraFormatError(
            "the file holds whole weights of a model, not a LoRA; extract a LoRA from it first"
        )
