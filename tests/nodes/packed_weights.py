"""Models whose weights are quantised or packed: ComfyUI's own formats, and stand-ins for those of packs.

The stand-ins store 4-bit numbers, two in a byte, with one scale a row.
"""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import comfy.lora
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_inside import merge_ops
from torch import nn

CPU = torch.device("cpu")


@torch.inference_mode()  # as ComfyUI runs its loaders
def load_quantised(form, every=2, tile=1):
    """The tiny Flux as ComfyUI loads it from a file whose weights are stored in one of its own formats.

    ``every`` leaves some weights as they are, as real files do. ``tile`` skips shapes that are no multiple.
    """
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor  # here: older versions of ComfyUI have none

    path = folder_paths.get_full_path_or_raise("diffusion_models", "tiny_flux.safetensors")
    tensors = comfy.utils.load_torch_file(path)
    linears = [key for key, weight in tensors.items() if weight.ndim == 2 and "blocks." in key]
    chosen = [key for key in linears if all(size % tile == 0 for size in tensors[key].shape)][::every]
    for key in chosen:
        stem, layout = key.removesuffix(".weight"), QUANT_ALGOS[form]["comfy_tensor_layout"]
        packed = QuantizedTensor.from_float(tensors.pop(key).float(), layout)
        tensors |= packed.state_dict(key)
        conf = json.dumps({"format": form}).encode()
        tensors[f"{stem}.comfy_quant"] = torch.tensor(list(conf), dtype=torch.uint8)
    model = comfy.sd.load_diffusion_model_state_dict(tensors)
    keys = [f"diffusion_model.{key}" for key in chosen]
    held = dict(model.model.named_parameters())
    assert all(
        isinstance(held[key].data, QuantizedTensor) or type(held[key]) is not nn.Parameter for key in keys
    )
    return model, keys


@contextmanager
def streaming(patcher):
    """Load a model that does not fit; yield ``compute(key, dtype)``: a weight as its layer has it."""

    def compute(key, dtype=torch.float32):
        module = patcher.model.get_submodule(key.removesuffix(".weight"))
        assert module.weight_function, f"{key} is not patched while computing"
        return comfy.ops.cast_bias_weight(module, torch.zeros(1, 1, dtype=dtype), offloadable=False)[
            0
        ].clone()

    with torch.inference_mode():
        patcher.load(CPU, lowvram_model_memory=1)
        try:
            yield compute
        finally:
            patcher.unpatch_model(CPU)


def pack(weight):
    """``(bytes (out, in / 2), scales (out, 1))`` of a weight ``(out, in)``."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 7
    whole = (weight / scale).round().clamp(-8, 7).to(torch.int16) + 8
    return (whole[:, ::2] * 16 + whole[:, 1::2]).to(torch.uint8), scale


def unpack(packed, scale):
    whole = torch.stack((packed // 16, packed % 16), dim=-1).flatten(1).float() - 8
    return whole * scale


class TensorOfPack(torch.Tensor):
    """A tensor that holds bytes, and states another shape, as those of GGUF packs do."""

    def __new__(cls, data, *_):
        return super().__new__(cls, data)

    def __init__(self, data, scale=None, true_shape=None):
        super().__init__()
        self.scale, self.tensor_shape, self.patches = scale, true_shape, []

    def to(self, *args, **kwargs):
        new = super().to(*args, **kwargs)
        new.scale, new.tensor_shape = self.scale, self.tensor_shape
        new.patches = list(self.patches)
        return new

    def clone(self, *_args, **_kwargs):
        return self

    def detach(self):
        return self

    @property
    def shape(self):
        if not hasattr(self, "tensor_shape"):
            self.tensor_shape = self.size()
        return self.tensor_shape


class LinearOfPack(nn.Linear):
    """Unpacks in its forward pass, and adds the patches that its weight was given."""

    def unpacked(self):
        weight = unpack(torch.Tensor(self.weight.data.as_subclass(torch.Tensor)), self.weight.scale)
        patches = [patch for given, _ in self.weight.patches for patch in given]
        return comfy.lora.calculate_weight(patches, weight, "key") if patches else weight

    def forward(self, x):
        return nn.functional.linear(x, self.unpacked().to(x.dtype), self.bias)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        # only for estimates of memory: it has the size of the bytes
        destination[f"{prefix}weight"] = torch.zeros_like(self.weight, device="meta")
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias


class PatcherOfPack(comfy.model_patcher.ModelPatcher):
    """Leaves the patches of a packed weight on it."""

    def patch_weight_to_device(self, key, device_to=None, inplace_update=False):
        weight = comfy.utils.get_attr(self.model, key)
        if key not in self.patches:
            return
        if not isinstance(weight, TensorOfPack):
            super().patch_weight_to_device(key, device_to, inplace_update)
            return
        out = weight.to(device_to)
        out.patches = [(self.patches[key], key)]
        comfy.utils.set_attr_param(self.model, key, out)


class TensorWithState(torch.Tensor):
    """Bytes in one column beside a record of what was quantised, as in the 4-bit tensors of bitsandbytes."""

    def __new__(cls, data, _scale, shape):
        new = super().__new__(cls, data.reshape(-1, 1))
        new.quant_state = SimpleNamespace(shape=torch.Size(shape))
        return new

    def detach(self):
        return self


class Sized(nn.Linear):
    """Holds plain bytes; only its sizes tell the shape."""


class Sizeless(nn.Module):
    """Says nothing about its weight."""

    def __init__(self, *_args, **_kwargs):
        super().__init__()


# the layer and the weight that it holds, which is made of bytes, scales and the true shape
LAYOUTS = {
    "states its shape": (LinearOfPack, TensorOfPack),
    "has a state": (Sizeless, TensorWithState),
    "bytes": (Sized, lambda data, _scale, _shape: data),
    "floats": (Sized, lambda data, _scale, _shape: data.float()),
    "whole numbers": (Sized, lambda data, _, shape: data.repeat(1, 2).view(shape).to(torch.int8)),
    "whole numbers of no size": (Sizeless, lambda data, _, shape: data.repeat(1, 2).view(shape)),
}


def refusal(function):
    """What the error says that a call ends with."""
    try:
        function()
    except merge_ops.MergeError as error:
        assert str(error).isprintable(), str(error)
        return str(error)
    raise AssertionError("it was accepted")


def put_packed(model, linear, weight_of, keys, patcher=comfy.model_patcher.ModelPatcher):
    """A patcher, of another class, of a model with other linear layers under some keys."""
    for key in keys:
        path = key.removesuffix(".weight")
        old = model.model.get_submodule(path)
        new = linear(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
        packed, scale = pack(old.weight.detach().float())
        new.weight = nn.Parameter(weight_of(packed, scale, tuple(old.weight.shape)), requires_grad=False)
        new.bias = old.bias
        parent, _, name = path.rpartition(".")
        setattr(model.model.get_submodule(parent), name, new)
    return patcher(model.model, CPU, CPU)
