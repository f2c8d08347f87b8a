"""Checks of models with quantised and packed weights: merged where ComfyUI can, or refused by name."""

from importlib import import_module

import comfy.model_patcher
import comfy.ops
import comfy.sd
import folder_paths
import packed_weights as packed
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfy_inside import (
    LORAS,
    assert_close,
    chained,
    check,
    run,
    some_methods,
    text_of,
    three_loras,
)
from packed_weights import LAYOUTS, refusal
from safetensors.torch import save_file
from torch import nn

# format -> the shapes that it can hold are multiples of this
FORMATS = {
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int8_tensorwise": 1,
    "nvfp4": 16,
    "mxfp8": 32,
    "convrot_w4a4": 256,
    "asym_w4a8_int8": 256,
}
WAYS = [("linear", {}), *some_methods(("ties", "dare_ties", "even"))]


def fresh():
    """The tiny Flux, to be changed."""
    path = folder_paths.get_full_path_or_raise("diffusion_models", "tiny_flux.safetensors")
    return comfy.sd.load_diffusion_model(path)


def merged(model, chosen, rows):
    return run("LoraAlloyLoader", model=model, loras=text_of(rows), method=chosen)[0]


def weights(patcher, keys):
    """The patched weights as ComfyUI stores them, unpacked."""
    with torch.inference_mode():
        found = {key: patcher.patch_weight_to_device(key, return_weight=True) for key in keys}
    return {
        key: w.dequantize() if hasattr(w, "dequantize") and hasattr(w, "_qdata") else w
        for key, w in found.items()
    }


def streamed(patcher, keys):
    """Weights as the layers compute with them while they do not fit: patched in the forward pass."""
    with packed.streaming(patcher) as compute:
        return {key: compute(key) for key in keys}


for _form in [form for form in FORMATS if form in QUANT_ALGOS]:

    @check
    def formats_of_comfyui_are_dequantised(form=_form):
        """With linear it is the chain, whole and streamed; other methods add their delta to real numbers."""
        rows = three_loras("flux")
        model, keys = packed.load_quantised(form, tile=FORMATS[form])
        plain = fresh()
        assert keys, form
        stock = chained(model, None, rows)[0]
        ours = merged(model, {"method": "linear"}, rows)
        assert_close(weights(ours, keys), weights(stock, keys), f"{form} linear")
        assert_close(streamed(ours, keys), streamed(stock, keys), f"{form} streamed")
        for method, density in WAYS:
            change = merged(model, {"method": method, **density}, rows)
            wanted = merged(plain, {"method": method, **density}, rows)
            patched = streamed(change, keys)
            for key, after in weights(wanted, keys).items():
                base = model.model.get_parameter(key).dequantize().float()
                delta = after.float() - plain.model.get_parameter(key).float()
                assert torch.allclose(patched[key], base + delta, atol=1e-4), (form, method, key)


@check
def formats_of_comfyui_take_base_dependent_kinds():
    """DoRA reads the dequantised weight, as ComfyUI's own adapter does."""
    model, keys = packed.load_quantised("float8_e4m3fn")
    stem = keys[0].removesuffix(".weight")
    rows, columns = model.model.get_parameter(keys[0]).shape
    generator = torch.Generator().manual_seed(3)
    tensors = {
        f"{stem}.lora_up.weight": torch.randn(rows, 4, generator=generator) * 0.1,
        f"{stem}.lora_down.weight": torch.randn(4, columns, generator=generator) * 0.1,
        f"{stem}.dora_scale": torch.rand(rows, 1, generator=generator) + 0.5,
    }
    save_file(tensors, LORAS / "dora_quant.safetensors")
    listed = [("dora_quant.safetensors", 0.7, 0.7)]
    ours = merged(model, {"method": "linear"}, listed)
    assert_close(weights(ours, keys[:1]), weights(chained(model, None, listed)[0], keys[:1]), "DoRA", 1e-2)


for _layout in LAYOUTS:

    @check
    def packed_weights_are_refused_by_name(layout=_layout):
        """With ComfyUI's own patcher, by every method and node, before anything is computed."""
        rows, model = three_loras("flux"), fresh()
        keys = [
            key for key in model.model.state_dict() if "double_blocks" in key and key.endswith("proj.weight")
        ]
        model = packed.put_packed(model, *LAYOUTS[layout], keys)
        stack = run("LoraAlloyStack", loras=text_of(rows))[0]
        lora = run("LoraAlloyMerge", stack=stack)[0]
        for method, density in [("linear", {}), *some_methods()]:
            said = refusal(lambda m=method, d=density: merged(model, {"method": m, **d}, rows))
            assert said.startswith("flux_a cannot be added to 2 weights") and "keeps packed" in said, said
            assert "diffusion_model.double_blocks.0.img_attn.proj" in said, said
        for node in ("LoraAlloyApply", "LoraAlloyMerge"):
            given = (
                {"stack": stack}
                if node.endswith("Merge")
                else {"lora": lora, "strength_model": 1.0, "strength_clip": 1.0}
            )
            said = refusal(lambda n=node, g=given: run(n, model=model, **g))
            assert "keeps packed" in said, said
        assert not model.patches


@check
def packs_that_unpack_are_used():
    """A patcher of another pack gets the patches, and what it computes with is base plus delta."""
    rows, model = three_loras("flux"), fresh()
    keys = [key for key in model.model.state_dict() if "double_blocks" in key and key.endswith("proj.weight")]
    model = packed.put_packed(model, *LAYOUTS["states its shape"], keys, packed.PatcherOfPack)
    plain = fresh()
    for method, density in WAYS:
        ours = merged(model, {"method": method, **density}, rows)
        wanted = merged(plain, {"method": method, **density}, rows)
        with torch.inference_mode():
            ours.patch_model(packed.CPU)
            for key in keys:
                module = ours.model.get_submodule(key.removesuffix(".weight"))
                base = packed.unpack(
                    torch.Tensor(module.weight.data.as_subclass(torch.Tensor)), module.weight.scale
                )
                delta = weights(wanted, [key])[key] - plain.model.get_parameter(key)
                assert torch.allclose(module.unpacked(), base + delta, atol=1e-5), (method, key)
            ours.unpatch_model(packed.CPU)
            for key in keys:
                comfy.utils.get_attr(ours.model, key).patches = []


@check
def packs_that_do_not_unpack_stop_the_run():
    """A patcher of another pack that hands over bytes after all: the weight is named, and not only logged."""

    class Careless(comfy.model_patcher.ModelPatcher):
        def patch_weight_to_device(self, key, *args, **kwargs):
            return super().patch_weight_to_device(key, *args, **kwargs)

    rows, model = three_loras("flux"), fresh()
    (key,) = [key for key in model.model.state_dict() if key.endswith("double_blocks.0.img_attn.proj.weight")]
    model = packed.put_packed(model, *LAYOUTS["states its shape"], [key], Careless)
    for method, density in WAYS:
        ours = merged(model, {"method": method, **density}, rows)
        said = refusal(lambda p=ours: weights(p, [key]))
        assert said.startswith(key) and "it is packed" in said, said


@check
def embeddings_that_comfyui_cannot_patch_are_refused():
    """A quantised embedding has no conversion: ComfyUI would add to a copy, and keep the weight as it is."""
    ops = comfy.ops.mixed_precision_ops({}, torch.float32)
    embedding = ops.Embedding(32, 16, dtype=torch.float32)
    layout = QUANT_ALGOS["int8_tensorwise"]["comfy_tensor_layout"]
    embedding.weight = nn.Parameter(
        QuantizedTensor.from_float(torch.randn(32, 16), layout), requires_grad=False
    )
    core = import_module("alloy_pack.nodes.model.core")
    own = import_module("alloy_pack.nodes.model.places.packed")
    stored = core.StoredWeight(embedding.weight, getattr(embedding, "convert_weight", None), embedding)
    assert own.read_true_shape("a.weight", stored) == (32, 16)
    assert not own._arrives("a.weight", stored, {})
