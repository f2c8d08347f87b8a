"""Checks of what merges over the sampling leave behind, what they cannot do, and what they share."""

from importlib import import_module

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import comfy.utils
import comfy_extras.nodes_hooks as core_hooks
import folder_paths
import torch
from comfy_inside import (
    LORAS,
    NODES,
    assert_close,
    chained,
    check,
    load_model,
    merge_ops,
    run,
    text_of,
    three_loras,
    weights_of,
)
from packed_weights import load_quantised
from safetensors.torch import load_file, save_file
from steps_inside import (
    LINEAR,
    TIES,
    conditions,
    refused,
    same,
    sample,
    share_before,
    timed,
    unchanged,
)


@check
def text_encoders_have_the_full_strength():
    """CLIP is that of the list without steps, also by Set CLIP Hooks, whether it follows the hooks or not."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    lines = text_of(rows).replace(">", ":steps=0-0.5>").splitlines()
    plain = run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method=TIES)
    ours = run("LoraAlloyLoader", model=model, clip=clip, loras="\n".join(lines), method=TIES)
    assert_close(weights_of(None, ours[1]), weights_of(None, plain[1]), "CLIP")
    assert not ours[0].patches
    with torch.inference_mode():
        expected = plain[1].encode_from_tokens(clip.tokenize("a fox"))
        for scheduled in (False, True):
            hooked = core_hooks.SetClipHooks().apply_hooks(clip, scheduled, False, ours[5])[0]
            found = hooked.encode_from_tokens_scheduled(hooked.tokenize("a fox"))
            assert all(torch.equal(cond, expected) for cond, _ in found), scheduled


@check
def nothing_is_left_behind():
    """An interruption or an error in the middle: the weights are back, and the next run is right."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    plain = conditions(clip, "a fox", "")
    ours = run("LoraAlloyLoader", model=model, loras=timed(rows, "", "0-0.5", ""), method=TIES)[0]
    with unchanged(model):
        before, bare = sample(ours, *plain), sample(model, *plain)
        for error in (comfy.model_management.InterruptProcessingException, RuntimeError):
            broken = ours.clone()
            calls = []

            def stop(apply, given, calls=calls, error=error):
                calls.append(None)
                if len(calls) > 3:
                    raise error
                return apply(given["input"], given["timestep"], **given["c"])

            broken.set_model_unet_function_wrapper(stop)
            with refused(error, ""):
                sample(broken, *plain)
            same(sample(model, *plain), bare, "the model without hooks")
            same(sample(ours, *plain), before, "the next run")


@check
def nodes_after_each_other_add_up():
    """Two nodes with steps one after the other, and Load LoRA before and behind them."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    plain = conditions(clip, "a fox", "")
    first = run("LoraAlloyLoader", model=model, loras=timed(rows[:1], "0-0.5"), method=LINEAR)[0]
    both = run("LoraAlloyLoader", model=first, loras=timed(rows[1:2], "0.3-1"), method=LINEAR)[0]
    one = run("LoraAlloyLoader", model=model, loras=timed(rows[:2], "0-0.5", "0.3-1"), method=LINEAR)[0]
    loaded = [(rows[2][0], rows[2][1], 0.0)]
    with unchanged(model):
        same(sample(both, *plain), sample(one, *plain), "two nodes")
        behind = chained(one, clip, loaded)[0]
        again = run(
            "LoraAlloyLoader", model=chained(model, clip, loaded)[0],
            loras=timed(rows[:2], "0-0.5", "0.3-1"), method=LINEAR,
        )[0]  # fmt: skip
        same(sample(behind, *plain), sample(again, *plain), "Load LoRA before or behind")


@check
def whole_weights_are_switched():
    """A weight that a file puts in place of the model's is there in the window only."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")[:1]
    tensors = load_file(LORAS / rows[0][0])
    key = "diffusion_model.input_blocks.1.0.in_layers.0.weight"
    tensors["lora_unet_input_blocks_1_0_in_layers_0.set_weight"] = model.model.state_dict()[key] * 1.5
    save_file(tensors, LORAS / "with_norm.safetensors")
    plain = conditions(clip, "a fox", "")
    edge = share_before(model, 3)
    ours, _, lora, *_ = run(
        "LoraAlloyLoader", model=model, loras=f"<lora:with_norm:1:steps=0-{edge}>", method=TIES
    )
    assert lora.merged.whole_weights
    always = run("LoraAlloyLoader", model=model, loras="<lora:with_norm:1>", method=TIES)[0]
    with unchanged(model):
        start = sample(always, *plain, end_at_step=3)
        same(sample(ours, *plain, end_at_step=3), start, "on")
        rest = {"start_at_step": 3, "add_noise": "disable", "latent_image": start}
        same(sample(ours, *plain, **rest), sample(model, *plain, **rest), "off")


@check
def hooks_in_half_precision():
    """A hook makes the weights of the patched model, to the last bit, and puts them back."""
    tensors = load_file(folder_paths.get_full_path_or_raise("diffusion_models", "tiny_flux.safetensors"))
    rows = three_loras("flux")
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        model = comfy.sd.load_diffusion_model_state_dict(dict(tensors), {"dtype": dtype})
        before = {key: weight.clone() for key, weight in model.model.state_dict().items()}
        patched, *_, hooks, _, _, _ = run("LoraAlloyLoader", model=model, loras=text_of(rows), method=TIES)
        wanted = weights_of(patched, None)
        assert all(weight.dtype == dtype for weight in wanted.values())
        clone = model.clone()
        for hook in hooks.hooks:
            hook.add_hook_patches(clone, {}, comfy.hooks.create_target_dict(), comfy.hooks.HookGroup())
        with torch.inference_mode():
            clone.patch_hooks(hooks)
            held = clone.model.state_dict()
            assert all(torch.equal(held[key], weight) for key, weight in wanted.items()), dtype
            clone.unpatch_hooks()
        assert all(torch.equal(weight, before[key]) for key, weight in model.model.state_dict().items())


@check
def models_that_hooks_cannot_change_are_refused():
    """Quantised ones, and those of packs for GGUF; without steps they are merged, and their hooks refuse."""
    rows = three_loras("flux")
    model, _ = load_quantised("float8_e4m3fn")
    with refused(merge_ops.MergeError, "the weights of this model are quantised"):
        run("LoraAlloyLoader", model=model, loras=timed(rows, "", "0-0.5", ""), method=TIES)
    patched, *_, hooks, _, _, _ = run("LoraAlloyLoader", model=model, loras=text_of(rows), method=TIES)
    assert patched.patches
    with refused(merge_ops.MergeError, "the weights of this model are quantised"):
        hooks.hooks[0].add_hook_patches(model, {}, {}, comfy.hooks.HookGroup())

    class OfPack(comfy.model_patcher.ModelPatcher):
        def patch_weight_to_device(self, *args, **kwargs):
            return super().patch_weight_to_device(*args, **kwargs)

    own = load_model("flux")[0]
    other = OfPack(own.model, own.load_device, own.offload_device)
    with refused(merge_ops.MergeError, "another pack patches the weights of this model"):
        run("LoraAlloyLoader", model=other, loras=timed(rows, "", "0-0.5", ""), method=TIES)


@check
def windows_share_what_they_can():
    """One merge for each set of strengths, and a threshold is found once for each LoRA."""
    model, _ = load_model("sd15")
    rows = three_loras("sd15")
    spaces = import_module("alloy_pack.merge_ops.merging.spaces")
    found, real = [], spaces.product_thresholds

    def counting(pairs, *rest):
        found.append(len(pairs))
        return real(pairs, *rest)

    spaces.product_thresholds = counting
    try:
        run("LoraAlloyLoader", model=model, loras=timed(rows, "", "", ""), method=TIES)
        alone = sum(found)
        for name, *_ in rows:
            (LORAS / name).touch()  # read anew, so that nothing is known of it
        found.clear()
        steps = ("0:1 1:0", "0-0.2 0.5-0.7", "")
        hooks = run("LoraAlloyLoader", model=model, loras=timed(rows, *steps), method=TIES)[5]
    finally:
        spaces.product_thresholds = real
    assert sum(found) == alone, (sum(found), alone)
    assert len(hooks.hooks) == 10
    *_, hooks, _, _, _ = run(
        "LoraAlloyLoader", model=model, loras=timed(rows, "0-0.2 0.5-0.7", "", ""), method=TIES
    )
    assert len(hooks.hooks) == 2


@check
def what_steps_cannot_do_is_said():
    """Refusals in one sentence, and lines about what CLIP, LORA_MODEL, files and other packs get."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    many = [",".join(f"{i / 40 + shift}-{i / 40 + shift + 0.01}" for i in range(20)) for shift in (0, 0.5)]
    for text, says in (
        ("<lora:sd15_a:1:steps=0-25>", "sd15_a: steps: 25 is outside [0, 1]"),
        (timed(rows[:2], *many), "at most 32"),
    ):
        with refused(merge_ops.ParameterError, says):
            run("LoraAlloyLoader", model=model, loras=text, method=TIES)
    assert "outside [0, 1]" in NODES["LoraAlloyStack"].validate_inputs("<lora:sd15_a:1:steps=0-25>")
    text = timed(rows, "", "0-0.5", "")
    with torch.inference_mode():
        out = NODES["LoraAlloyLoader"].execute(model=model, clip=clip, loras=text, method=TIES)
        saved = NODES["LoraAlloySave"].execute(lora=out.result[2], filename_prefix="loras/timed")
        stacked = NODES["LoraAlloyStack"].execute(loras=text)
    lines = out.ui.as_dict()
    assert "0 to 0.5 of the sampling: sd15_a 0.7, sd15_b -0.5, sd15_c 1.1" in lines["text"][0], lines
    assert any("steps= of sd15_b holds in model and hooks" in line for line in lines["warnings"]), lines
    assert "steps= of sd15_b cannot be part of a LoRA" in saved.ui.as_dict()["text"][0]
    assert "cannot carry strengths over the sampling: other packs get sd15_b" in str(stacked.ui.as_dict())
    frames = core_hooks.CreateHookKeyframe().create_hook_keyframe(0.5, 0.0)[0]
    with refused(merge_ops.ParameterError, "remove steps= from the list"):
        core_hooks.SetHookKeyframes().set_hook_keyframes(out.result[5], frames)
    assert run("LoraAlloyLoader", model=model, loras="", method=TIES)[5].hooks == []
    with refused(merge_ops.ParameterError, "this MODEL changes over the sampling"):
        run("LoraAlloyRecord", model=out.result[0], clip=clip, loras="<lora:sd15_a:1:prompt=a fox>")
    with refused(merge_ops.ParameterError, "this MODEL changes over the sampling"):
        run("LoraAlloyMeasure", recording=None, model=out.result[0])
