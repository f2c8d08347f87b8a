"""Names without a prefix are saved so that stock diffusers finds all that it could ever find."""

import re

import pytest
import torch
from safetensors.torch import load_file

import merge_ops
from merge_ops.formats import from_tensors
from tests.architectures import keys
from tests.architectures.configs import DIFFUSERS
from tests.architectures.diffusers_models import pipeline_class

PREFIXES = ("diffusion_model.", "transformer.", "unet.", "lora_unet_", "lora_transformer_", "")
ENDS = {"diffusers": (".lora_A.weight", ".lora_B.weight"), "kohya": (".lora_down.weight", ".lora_up.weight")}
UNETS = ("sd1", "sd2", "sdxl")
# errors of converters that meet names which they do not know
BROKEN = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def some(architecture, source):
    """The blocks' first two layers of each sequence at most, since some converters refuse the embedders."""
    shapes = keys.shapes(architecture, source)
    numbers = {name: re.search(r"(?:blocks|layers)\.(\d+)\.", name) for name in shapes}
    return {name: shapes[name] for name, found in numbers.items() if found and int(found[1]) < 2}


def file_of(stems, down, up):
    """A LoRA of rank 1 on each stem."""
    tensors = {}
    for stem, shape in stems.items():
        sizes = keys.sizes(shape, 1)
        tensors[stem + up], tensors[stem + down] = (torch.ones(size, dtype=torch.float16) for size in sizes)
    return tensors


def with_alpha(tensors, down):
    """The same file with the alpha that kohya's trainers always write."""
    return tensors | {key.replace(down, ".alpha"): torch.tensor(1.0) for key in tensors if key.endswith(down)}


def known_to_stock(architecture, tensors):
    """How many modules of the real model stock diffusers finds in a file."""
    shapes = keys.shapes(architecture, "diffusers")
    try:
        result = pipeline_class(architecture).lora_state_dict(dict(tensors))
    except BROKEN:
        return 0
    result = result[0] if isinstance(result, tuple) else result
    part = "unet." if architecture in UNETS else "transformer."
    found = {re.split(r"\.(?:lora|lora_linear_layer)[._]", key.removeprefix(part))[0]
             for key in result if key.startswith(part)}  # fmt: skip
    return len({name.replace(".processor", "") for name in found} & shapes.keys())


@pytest.mark.parametrize("source", ["comfyui", "diffusers"])
@pytest.mark.parametrize("architecture", [name for name in DIFFUSERS if name != "pixart"])
def test_saved_files_load(architecture, source, tmp_path):
    """In each format, as many modules as with the best of all prefixes."""
    if architecture in UNETS and source == "comfyui":
        pytest.skip("original names of a UNet are brought to diffusers' when they are read")
    shapes = some(architecture, source)
    lora = from_tensors("bare", file_of(shapes, ".lora_down.weight", ".lora_up.weight"))
    counts = {}
    for form, (down, up) in ENDS.items():
        best = 0
        for prefix in PREFIXES:
            flat = prefix.endswith("_")
            stems = {prefix + (n.replace(".", "_") if flat else n): s for n, s in shapes.items()}
            if flat == (form == "kohya"):
                own = file_of(stems, down, up)
                best = max(best, known_to_stock(architecture, with_alpha(own, down) if flat else own))
        file = tmp_path / f"{form}.safetensors"
        merge_ops.save(merge_ops.merge([lora]), file, format=form)
        counts[form] = known_to_stock(architecture, load_file(file)), best
    assert all(found >= best for found, best in counts.values()), counts
    if source == "diffusers":
        assert counts["diffusers"][0] == len(shapes)
