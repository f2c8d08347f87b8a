"""LoRA files of real models that take no room: headers that are whole, and a hole in place of the tensors."""

import json
import math
import struct

from tests.architectures.keys import shapes

KOHYA = ("lora_unet_{}", "_", (".lora_down.weight", ".lora_up.weight", ".alpha"))
DOTTED = ("diffusion_model.{}", ".", (".lora_A.weight", ".lora_B.weight"))


def write_header(path, entries, metadata=None):
    """A file with tensors of these shapes, in bfloat16."""
    header, end = {} if metadata is None else {"__metadata__": metadata}, 0
    for key, shape in entries.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)


def lora_entries(model, rank=8, spelling=KOHYA, source="comfyui", only=""):
    """The tensors of a LoRA of a real model, by key."""
    stem, dot, (down, up, *alpha) = spelling
    entries = {}
    for name, (out, *rest) in shapes(model, source).items():
        if only in name:
            key = stem.format(name.replace(".", dot))
            entries |= {key + down: (rank, *rest), key + up: (out, rank), **{key + end: () for end in alpha}}
    return entries


def write_lora(path, model="sdxl", metadata=None, **more):
    """A LoRA of a real model."""
    write_header(path, lora_entries(model, **more), metadata)
