"""Checks of what ``nodes/model/core_hooks.py`` expects of hooks: one for each function, by its name."""

from importlib import import_module

import comfy.hooks
import comfy.patcher_extension
import torch
from comfy_inside import LORAS, check, load_model, three_loras
from packed_weights import load_quantised
from safetensors.torch import load_file

import nodes as core_nodes

core = import_module("alloy_pack.nodes.model.core_hooks")


@check
def core_add_hook_patches():
    """A hook's patches are held apart from the others, at their strength, for a weight or a part of one."""
    model, _ = load_model("flux")
    tensors = load_file(LORAS / three_loras("flux")[0][0])
    patches = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(model.model, {}))
    hook, clone = comfy.hooks.WeightHook(), model.clone()
    core.add_hook_patches(clone, hook, patches, 0.5)
    core.add_hook_patches(clone, hook, patches, -1.0)
    held = clone.hook_patches[hook.hook_ref]
    assert not clone.patches and not model.hook_patches and held
    for key, entries in held.items():
        targets = [target for target in patches if key in (target, target[0])]
        assert [entry[0] for entry in entries] == [0.5] * len(targets) + [-1.0] * len(targets), key
        assert [entry[1] for entry in entries] == [patches[target] for target in targets] * 2, key


@check
def core_takes_hooks():
    """As ComfyUI does where it applies hooks; it cannot read the scales of quantised weights there."""
    plain, quantised = load_model("flux")[0], load_quantised("float8_e4m3fn")[0]
    assert core.takes_hooks(plain) and not core.takes_hooks(quantised)
    hook = comfy.hooks.WeightHook()
    tensors = load_file(LORAS / three_loras("flux")[0][0])
    for model, works in ((plain, True), (quantised, False)):
        patches = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(model.model, {}))
        clone = model.clone()
        core.add_hook_patches(clone, hook, patches, 0.5)
        group = comfy.hooks.HookGroup()
        group.add(hook)
        with torch.inference_mode():
            try:
                clone.patch_hooks(group)
                clone.unpatch_hooks()
            except AttributeError:
                assert not works
            else:
                assert works


@check
def core_list_conditions():
    """All conditions of a sampling, positive and negative, which are not those that were handed in."""
    model, clip = load_model("sd15")
    positive, negative = (core_nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a fox", ""))
    seen, clone = [], model.clone()

    def outer(executor, *args, **kwargs):
        seen.extend(core.list_conditions(executor))
        for condition in seen:
            condition["marked"] = True
        return executor(*args, **kwargs)

    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "test", outer)
    with torch.inference_mode():
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        core_nodes.KSampler().sample(clone, 1, 1, 2.0, "euler", "normal", positive, negative, latent)
    assert len(seen) == 2 and all("cross_attn" in condition for condition in seen)
    assert not any("marked" in options for _, options in positive + negative)
