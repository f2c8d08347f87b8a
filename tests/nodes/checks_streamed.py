"""Checks of models that do not fit: weights are patched each time a layer computes, in its own dtype."""

import comfy.sd
import folder_paths
import torch
from comfy_inside import OF_EACH_KIND, assert_close, chained, check, run, some_methods, text_of, three_loras
from packed_weights import streaming


def loaded(dtype):
    """The tiny Flux, stored in a dtype."""
    path = folder_paths.get_full_path_or_raise("diffusion_models", "tiny_flux.safetensors")
    return comfy.sd.load_diffusion_model(path, model_options={"dtype": dtype})


def computed(model, keys, dtype):
    with streaming(model) as compute:
        return {key: compute(key, dtype) for key in keys}


@check
def linear_is_the_chain_while_streamed():
    """Bit for bit, in every dtype of the weights and of the computation: the patches are ComfyUI's own."""
    rows = three_loras("flux")
    for stored in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        model = loaded(stored)
        stock = chained(model, None, rows)[0]
        ours = run("LoraAlloyLoader", model=model, loras=text_of(rows), method={"method": "linear"})[0]
        keys = [key for key in stock.patches if key.endswith(".weight") and "blocks" in key]
        for dtype in {torch.float32, torch.bfloat16, stored} - {torch.float8_e4m3fn}:
            what = f"{stored} computed in {dtype}"
            assert_close(computed(ours, keys, dtype), computed(stock, keys, dtype), what)


@check
def methods_while_streamed():
    """A layer that computes in float32 gets base plus delta, and in half precision the same, rounded."""
    rows = three_loras("flux")
    model = loaded(torch.float32)
    for method, density in some_methods(OF_EACH_KIND):
        chosen = {"method": method, **density}
        ours = run("LoraAlloyLoader", model=model, loras=text_of(rows), method=chosen)[0]
        keys = [key for key in ours.patches if key.endswith(".weight") and "blocks" in key]
        with torch.inference_mode():
            whole = {key: ours.patch_weight_to_device(key, return_weight=True).clone() for key in keys}
        assert_close(computed(ours, keys, torch.float32), whole, method, 1e-6)
        half = computed(ours, keys, torch.bfloat16)
        for key, weight in half.items():
            assert weight.dtype == torch.bfloat16
            off = (weight.float() - whole[key]).abs().max() / whole[key].abs().max()
            assert off < 1.2e-2, (method, key, off)
