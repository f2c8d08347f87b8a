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


def is_layer(module):
    """A linear layer, also one of ComfyUI's for quantised weights, or a convolution."""
    return isinstance(module, (nn.Linear, *CONVS)) or type(module).__name__ == "Linear"


def outputs_of(part, keys=None, dtype=torch.float32):
    """The output of each linear layer and convolution, as ComfyUI computes it for a model that it loaded."""
    patcher = getattr(part, "patcher", part)
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher])
        found = {}
        for place, (path, module) in enumerate(patcher.model.named_modules()):
            if is_layer(module) and (keys is None or f"{path}.weight" in keys):
                found[f"{path}.weight"] = module(input_of(module, place).to(dtype)).float().clone()
        comfy.model_management.unload_all_models()
    return found


# the layers that read the prompt, and what goes with it, by their paths
READERS = {
    "sdxl": ("attn2.to_k", "label_emb.0.0"),
    "flux": ("txt_in", "vector_in.in_layer"),
    "sd3": ("context_embedder", "y_embedder.mlp.0"),
    "wan": ("text_embedding.0", None),
}


def prediction_of(model, name):
    """What the whole diffusion model predicts, called as a sampler calls it."""
    generator = torch.Generator().manual_seed(3)
    sizes = [
        next(m.in_features for path, m in model.model.diffusion_model.named_modules() if path.endswith(end))
        if end
        else None
        for end in READERS[name]
    ]
    frames = (1,) if name == "wan" else ()
    shape = 1, model.get_model_object("latent_format").latent_channels, *frames, 8, 8
    given = {"c_crossattn": torch.randn(1, 7, sizes[0], generator=generator)}
    if sizes[1]:
        given["y"] = torch.randn(1, sizes[1], generator=generator)
    if name == "flux":
        given["guidance"] = torch.tensor([3.5])
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        x = torch.randn(shape, generator=generator)
        found = model.model.apply_model(x, torch.tensor([0.6]), **given).clone()
        comfy.model_management.unload_all_models()
    return {"prediction": found}


def assert_near(ours, wanted, what, tolerance=1e-5):
    """The same outputs, relative to the largest entry of each."""
    assert ours.keys() == wanted.keys() and ours, what
    for key, output in wanted.items():
        off = float((ours[key] - output).abs().max() / (output.abs().max() + 1e-9))
        assert off <= tolerance, (what, key, off)


def count_changed(ours, base):
    return sum(not torch.allclose(ours[key], output, rtol=1e-4, atol=1e-6) for key, output in base.items())
