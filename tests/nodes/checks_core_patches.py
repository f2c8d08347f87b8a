"""Checks of what ``nodes/model/core.py`` expects of weights and patches: one for each function, by its name.

If one fails after an update of ComfyUI, only the function of that name has to follow.
"""

from importlib import import_module

import comfy.hooks
import comfy.lora
import comfy.model_patcher
import comfy.sd
import comfy.utils
import comfy.weight_adapter
import torch
from comfy_inside import LORAS, check, load_model, run, text_of, three_loras
from packed_weights import CPU, load_quantised, streaming
from safetensors.torch import load_file

core = import_module("alloy_pack.nodes.model.core")


class Probe(comfy.weight_adapter.WeightAdapterBase):
    """A patch that changes nothing and keeps what it was handed."""

    name = "probe"

    def __init__(self):
        self.loaded_keys, self.weights, self.seen = set(), (), []

    def calculate_weight(
        self, weight, key, strength, strength_model, offset, function, intermediate_dtype=None, *_
    ):
        self.seen.append((weight.clone(), intermediate_dtype))
        return weight


def probed(model, key):
    """A clone with a probe on one weight."""
    clone, probe = model.clone(), Probe()
    assert clone.add_patches({key: probe}) == [key]
    return clone, probe


@check
def core_with_patches():
    """What ComfyUI computes of a weight and the patches on it; a weight without any is as it was."""
    model, _ = load_model("sd15")
    tuned = run("LoraAlloyLoader", model=model, loras=text_of(three_loras("sd15")))[0]
    stored = core.read_stored_weights(tuned)
    key, other = next(iter(tuned.patches)), next(key for key in stored if key not in tuned.patches)
    with torch.inference_mode():
        expected = tuned.patch_weight_to_device(key, return_weight=True)
        got = core.with_patches(tuned, key, core.hand_to_patch(stored[key]))
        assert torch.allclose(got.to(expected.dtype), expected, atol=1e-3)
        assert not torch.equal(got, stored[key].weight.float())
    weight = core.hand_to_patch(stored[other])
    assert core.with_patches(tuned, other, weight) is weight


@check
def core_read_stored_weights():
    """The weights without patches: while a merge is loaded, while a hook is on, and of quantised modules."""
    model, _ = load_model("flux")
    plain = {key: weight.clone() for key, weight in model.model.state_dict().items()}

    def assert_plain(patcher):
        found = core.read_stored_weights(patcher)
        assert found.keys() == plain.keys()
        assert all(torch.equal(one.weight, plain[key]) for key, one in found.items())

    rows = three_loras("flux")
    merged = run("LoraAlloyLoader", model=model, loras=text_of(rows), method={"method": "ties"})[0]
    key = next(iter(merged.patches))
    with torch.inference_mode():
        merged.patch_model(CPU)
        assert not torch.equal(merged.model.state_dict()[key], plain[key])
        assert_plain(merged)
        merged.unpatch_model(CPU)
    hooked = model.clone()
    lora = comfy.utils.load_torch_file(str(LORAS / rows[0][0]), safe_load=True)
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 1.0)
    with torch.inference_mode():
        hooked.patch_model(CPU)
        hooked.register_all_hook_patches(
            hooks, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
        )
        hooked.apply_hooks(hooks)
        assert not torch.equal(hooked.model.state_dict()[key], plain[key])
        assert_plain(hooked)
        hooked.apply_hooks(None)
        hooked.unpatch_model(CPU)
    quantised, keys = load_quantised("float8_e4m3fn")
    found = core.read_stored_weights(quantised)
    assert all(type(found[key].weight).__name__ == "QuantizedTensor" and found[key].convert for key in keys)


@check
def core_read_widened_shapes():
    """Of a control LoRA that stock ComfyUI loads, and of nothing else."""
    model, _ = load_model("flux")
    key = "diffusion_model.img_in.weight"
    rows, columns = model.model.get_parameter(key).shape
    tensors = {
        "diffusion_model.img_in.lora_up.weight": torch.ones(rows, 2),
        "diffusion_model.img_in.lora_down.weight": torch.ones(2, 2 * columns),
        "diffusion_model.img_in.reshape_weight": torch.tensor([rows, 2 * columns]),
    }
    plain = load_file(LORAS / three_loras("flux")[0][0])
    clone = comfy.sd.load_lora_for_models(model, None, plain, 1.0, 1.0)[0]
    assert core.read_widened_shapes(clone) == {}
    clone = comfy.sd.load_lora_for_models(clone, None, tensors, 1.0, 1.0)[0]
    assert core.read_widened_shapes(clone) == {key: (rows, 2 * columns)}


@check
def core_hand_to_patch():
    """Exactly what a patch is handed when a model is loaded whole, for plain and for quantised weights."""
    plain, _ = load_model("flux")
    quantised, keys = load_quantised("float8_e4m3fn")
    for model in (plain, quantised):
        clone, probe = probed(model, keys[0])
        with torch.inference_mode():
            clone.patch_weight_to_device(keys[0], return_weight=True)
            given = core.hand_to_patch(core.read_stored_weights(clone)[keys[0]])
        ((weight, dtype),) = probe.seen
        assert type(given) is torch.Tensor and given.dtype == weight.dtype == dtype == torch.float32
        assert torch.equal(given, weight)


@check
def core_hand_to_patch_while_streamed():
    """A model that does not fit is patched in the dtype that its layers compute in, and not rounded after."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model, _ = load_model("flux")
        key = "diffusion_model.double_blocks.0.img_attn.proj.weight"
        clone, probe = probed(model, key)
        with streaming(clone) as compute:
            weight = compute(key, dtype)
        ((given, intermediate),) = probe.seen
        assert given.dtype == intermediate == weight.dtype == dtype, (given.dtype, intermediate, weight.dtype)


@check
def core_is_patched_by_pack():
    model, clip = load_model("sd15")
    assert not core.is_patched_by_pack(model) and not core.is_patched_by_pack(clip)
    dynamic = getattr(comfy.model_patcher, "ModelPatcherDynamic", comfy.model_patcher.ModelPatcher)
    assert not core.is_patched_by_pack(dynamic.__new__(dynamic))

    class OfPack(comfy.model_patcher.ModelPatcher):
        def patch_weight_to_device(self, *args, **kwargs):
            return None

    assert core.is_patched_by_pack(OfPack(model.model, CPU, CPU))


@check
def core_quantised_as():
    quantised, keys = load_quantised("float8_e4m3fn")
    weight = core.read_stored_weights(quantised)[keys[0]].weight
    assert "FP8" in core.quantised_as(weight) and core.quantised_as(torch.zeros(1)) == ""


@check
def core_attach_metadata():
    """The same attachment that stock Load LoRA leaves on a model and on a text encoder."""
    model, clip = load_model("sd15")
    stock = comfy.sd.load_lora_for_models(model, clip, {}, 1.0, 1.0, {"a": "1"})
    ours = model.clone(), clip.clone()
    for part, wanted in zip(ours, stock, strict=True):
        core.attach_metadata(part, {"a": "1"})
        assert core.patcher_of(part).attachments == core.patcher_of(wanted).attachments != {}
    assert not model.attachments and not clip.patcher.attachments


@check
def core_copy_patches():
    model, _ = load_model("flux")
    merged = run(
        "LoraAlloyLoader", model=model, loras=text_of(three_loras("flux")), method={"method": "ties"}
    )[0]
    clone = model.clone()
    core.copy_patches(clone, merged)
    assert clone.patches == merged.patches != {} and clone.patches_uuid == merged.patches_uuid
    assert clone.clone_has_same_weights(merged) and not clone.clone_has_same_weights(model)


@check
def core_pack_low_rank():
    """The state of ComfyUI's own adapter, as its loader makes it."""
    up, down = torch.ones(8, 2), torch.ones(2, 4)
    keys = {"a.lora_up.weight": up, "a.lora_down.weight": down, "a.reshape_weight": torch.tensor([8, 6])}
    stock = comfy.weight_adapter.LoRAAdapter.load("a", keys, 3.0, None)
    assert tuple(stock.weights) == core.pack_low_rank(up, down, 3.0, (8, 6))
    plain = comfy.weight_adapter.LoRAAdapter.load("a", dict(list(keys.items())[:2]), 3.0, None)
    assert tuple(plain.weights) == core.pack_low_rank(up, down, 3.0, ())


@check
def core_unpack_low_rank():
    """From the state of what stock ComfyUI loads."""
    model, _ = load_model("flux")
    tensors = load_file(LORAS / three_loras("flux")[0][0])
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    for adapter in comfy.lora.load_lora(tensors, key_map).values():
        up, down, padded_to = core.unpack_low_rank(adapter.weights)
        assert up.shape[1] == down.shape[0] == 4 and padded_to is None
