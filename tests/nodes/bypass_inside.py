"""Layers of a loaded MODEL or CLIP, called one by one: what a LoRA does to their outputs."""

import comfy.model_management
import torch
from torch import nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def input_of(module, seed):
    """Random numbers that a linear layer or a convolution takes."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(module, CONVS):
        sizes = (max(6, 2 * side) for side in module.kernel_size)
        return torch.randn(1, module.in_channels, *sizes, generator=generator)
    return torch.randn(2, module.in_features, generator=generator)


def outputs_of(part, keys=None, dtype=torch.float32):
    """The output of each linear layer and convolution, as ComfyUI computes it for a model that it loaded."""
    patcher = getattr(part, "patcher", part)
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher])
        found = {}
        for place, (path, module) in enumerate(patcher.model.named_modules()):
            if isinstance(module, (nn.Linear, *CONVS)) and (keys is None or f"{path}.weight" in keys):
                found[f"{path}.weight"] = module(input_of(module, place).to(dtype)).float().clone()
        comfy.model_management.unload_all_models()
    return found


def assert_near(ours, wanted, what, tolerance=1e-5):
    """The same outputs, relative to the largest entry of each."""
    assert ours.keys() == wanted.keys() and ours, what
    for key, output in wanted.items():
        off = float((ours[key] - output).abs().max() / (output.abs().max() + 1e-9))
        assert off <= tolerance, (what, key, off)


def count_changed(ours, base):
    return sum(not torch.allclose(ours[key], output, rtol=1e-4, atol=1e-6) for key, output in base.items())
