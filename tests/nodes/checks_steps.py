"""Checks of merges that change over the sampling: against ComfyUI's own hooks, and against steps by hand."""

import sys
from contextlib import contextmanager
from itertools import pairwise

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import comfy.utils
import comfy_extras.nodes_custom_sampler as custom
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

import nodes as core_nodes

TIES = {"method": "ties", "density": 0.3}
LINEAR = {"method": "linear"}
STEPS = 4


def conditions(clip, *texts):
    """A conditioning for each text."""
    return [core_nodes.CLIPTextEncode().encode(clip, text)[0] for text in texts]


def noise_or(latent=None):
    generator = torch.Generator().manual_seed(3)
    return {
        "samples": torch.randn(1, 4, 8, 8, generator=generator)
        if latent == "image"
        else torch.zeros(1, 4, 8, 8)
    }


def sample(model, positive, negative, sampler="euler", scheduler="normal", steps=STEPS, cfg=2.0, **how):
    """ComfyUI's KSampler; with ``start_at_step`` or ``end_at_step``, KSampler (Advanced)."""
    with torch.inference_mode():
        if "start_at_step" in how or "end_at_step" in how:
            chosen = {"add_noise": "enable", "return_with_leftover_noise": "enable", "start_at_step": 0,
                      "end_at_step": steps, "latent_image": noise_or()} | how  # fmt: skip
            return core_nodes.KSamplerAdvanced().sample(
                model, noise_seed=5, steps=steps, cfg=cfg, sampler_name=sampler, scheduler=scheduler,
                positive=positive, negative=negative, **chosen,
            )[0]  # fmt: skip
        latent = how.pop("latent_image", noise_or())
        return core_nodes.KSampler().sample(
            model, 5, steps, cfg, sampler, scheduler, positive, negative, latent, **how
        )[0]


def share_before(model, step, steps=STEPS, scheduler="normal"):
    """A share of the sampling between two steps: ComfyUI makes a noise level of it."""
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
    middle = float(sigmas[step - 1] + sigmas[step]) / 2
    low, high = 0.0, 1.0
    for _ in range(40):
        share = (low + high) / 2
        low, high = (share, high) if sampling.percent_to_sigma(share) > middle else (low, share)
    return round((low + high) / 2, 4)


def same(a, b, what):
    assert torch.equal(a["samples"], b["samples"]), (what, (a["samples"] - b["samples"]).abs().max())


def differ(a, b, what):
    assert not torch.allclose(a["samples"], b["samples"], rtol=1e-3, atol=1e-4), what


def core_hooks_of(rows):
    """Create Hook LoRA for each row, with Set Hook Keyframes over ``(share, factor)``; None sets none."""
    hooks = None
    for name, strength, points in rows:
        one = core_hooks.CreateHookLoraModelOnly().create_hook_model_only(name, strength)[0]
        if points is not None:
            frames = None
            for share, factor in points:
                frames = core_hooks.CreateHookKeyframe().create_hook_keyframe(factor, share, frames)[0]
            one = core_hooks.SetHookKeyframes().set_hook_keyframes(one, frames)[0]
        hooks = (
            one if hooks is None else core_hooks.CombineHooks().combine_hooks(hooks_A=hooks, hooks_B=one)[0]
        )
    return hooks


def with_hooks(hooks, *conds, mask=None):
    """Cond Set Props on each."""
    node = core_hooks.ConditioningSetProperties()
    return [node.set_properties(cond, 1.0, "default", mask=mask, hooks=hooks)[0] for cond in conds]


@contextmanager
def unchanged(model):
    """The weights are the same bits afterwards, and no hook is left on."""
    before = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    yield
    comfy.model_management.unload_all_models()
    assert all(torch.equal(weight, before[key]) for key, weight in model.model.state_dict().items())


def timed(rows, *steps):
    """The text of rows for the model, with steps."""
    lines = []
    for (name, strength, _), text in zip(rows, steps, strict=True):
        lines.append(f"<lora:{name}:{strength}{f':steps={text}' if text else ''}>")
    return "\n".join(lines)


@check
def linear_over_time_is_cores_hooks():
    """Bit for bit: a LoRA that stays, one that ends, and one that changes, with several samplers."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    text = timed(rows, "", "0-0.5", "0:1 0.3:1 0.3:0.2 0.7:0.2 0.7:-0.5 1:-0.5")
    ours, *_, hooks = run("LoraAlloyLoader", model=model, loras=text, method=LINEAR)
    theirs = core_hooks_of([
        (rows[0][0], rows[0][1], None),
        (rows[1][0], rows[1][1], [(0.0, 1.0), (0.5, 0.0)]),
        (rows[2][0], rows[2][1], [(0.0, 1.0), (0.3, 0.2), (0.7, -0.5)]),
    ])  # fmt: skip
    plain = conditions(clip, "a fox", "")
    hooked = with_hooks(theirs, *plain)
    own = with_hooks(hooks, *plain)
    with unchanged(model):
        for sampler in ("euler", "heun", "dpmpp_2m", "euler_ancestral", "uni_pc"):
            expected = sample(model, *hooked, sampler=sampler)
            same(sample(ours, *plain, sampler=sampler), expected, sampler)
        same(sample(model, *own, sampler=sampler), expected, "hooks")
        same(sample(ours, *own, sampler=sampler), expected, "both count once")
        differ(sample(model, *plain, sampler=sampler), expected, "without")


@check
def windows_of_ties_are_steps_by_hand():
    """Each part of the steps equals that of the merge of the LoRAs that are on in it, to the last bit."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    plain = conditions(clip, "a fox", "")
    edge = share_before(model, 2)
    text = timed(rows, "", f"0-{edge}", f"{edge}-1:0.5")
    ours = run("LoraAlloyLoader", model=model, loras=text, method=TIES)[0]
    first = run("LoraAlloyLoader", model=model, loras=timed(rows[:2], "", ""), method=TIES)[0]
    changed = [rows[0], (rows[2][0], rows[2][1] * 0.5, 0)]
    second = run("LoraAlloyLoader", model=model, loras=timed(changed, "", ""), method=TIES)[0]
    with unchanged(model):
        start = sample(first, *plain, end_at_step=2)
        same(sample(ours, *plain, end_at_step=2), start, "the first part")
        rest = {"start_at_step": 2, "add_noise": "disable", "latent_image": start}
        end = sample(second, *plain, **rest)
        same(sample(ours, *plain, **rest), end, "the second part alone")
        differ(sample(first, *plain, **rest), end, "the parts differ")
        whole = sample(ours, *plain)
        assert torch.allclose(whole["samples"], end["samples"], atol=1e-4), "in one go"
        same(sample(ours, *plain), whole, "once more")


@check
def shares_are_noise_levels():
    """With other schedulers and numbers of steps, image to image, and SamplerCustom."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")[:1]
    plain = conditions(clip, "a fox", "")
    late = run("LoraAlloyLoader", model=model, loras=timed(rows, "0.6-1"), method=TIES)[0]
    early = run("LoraAlloyLoader", model=model, loras=timed(rows, "0-0.45"), method=TIES)[0]
    always = run("LoraAlloyLoader", model=model, loras=timed(rows, ""), method=TIES)[0]
    image = {"latent_image": noise_or("image"), "denoise": 0.3}
    with unchanged(model):
        for scheduler in ("karras", "simple"):
            same(
                sample(late, *plain, scheduler=scheduler, **image),
                sample(always, *plain, scheduler=scheduler, **image),
                "all of it is in the window",
            )
            same(
                sample(early, *plain, scheduler=scheduler, **image),
                sample(model, *plain, scheduler=scheduler, **image),
                "none of it is in the window",
            )
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "exponential", 7)
        cut = next(i for i, sigma in enumerate(sigmas) if sigma <= sampling.percent_to_sigma(0.6))
        assert 0 < cut < 7
        found = {}
        for name, one, part in (
            ("late", late, sigmas[cut:]), ("always", always, sigmas[cut:]), ("early", early, sigmas),
            ("before", late, sigmas[: cut + 1]), ("never", model, sigmas[: cut + 1]), ("base", model, sigmas),
        ):  # fmt: skip
            with torch.inference_mode():
                found[name] = custom.SamplerCustom.execute(
                    one, True, 5, 2.0, *plain, comfy.samplers.sampler_object("euler"), part, noise_or()
                ).result[0]
        same(found["late"], found["always"], "SamplerCustom from the window on")
        same(found["before"], found["never"], "SamplerCustom up to the window")
        differ(found["early"], found["base"], "a window at the start")


@check
def samplers_that_look_ahead_come_back():
    """heunpp2 asks for a later noise level and then an earlier one: each call has the weights of its own."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")[:1]
    positive, negative = conditions(clip, "a fox", "")
    ours, *_ = run("LoraAlloyLoader", model=model, loras=timed(rows, "0-0.5"), method=TIES)
    key = next(
        key for key in run("LoraAlloyLoader", model=model, loras=timed(rows, ""), method=TIES)[0].patches
    )
    edge = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    base = comfy.utils.get_attr(model.model, key).clone()
    seen = []

    def watch(apply, given):
        changed = not torch.equal(comfy.utils.get_attr(ours.model, key), base)
        seen.append((float(given["timestep"][0]), changed))
        return apply(given["input"], given["timestep"], **given["c"])

    watched = ours.clone()
    watched.set_model_unet_function_wrapper(watch)
    with unchanged(model):
        sample(watched, positive, negative, sampler="heunpp2", steps=6)
    levels = [level for level, _ in seen]
    assert any(b > a for a, b in pairwise(levels)), "this sampler never comes back"
    assert all(changed == (level > edge) for level, changed in seen), seen
    assert {changed for _, changed in seen} == {True, False}


@check
def masks_and_other_hooks_compose():
    """A LoRA hook of ComfyUI in one half of the picture and ours on the model: as ComfyUI's for both."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    left, right, negative = conditions(clip, "a fox", "a boat", "")
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    other = core_hooks_of([(rows[2][0], rows[2][1], [(0.0, 0.2), (0.6, 1.0)])])
    both = core_hooks_of([(rows[0][0], rows[0][1], None), (rows[1][0], rows[1][1], [(0.0, 1.0), (0.4, 0.0)])])
    ours, *_, hooks = run("LoraAlloyLoader", model=model, loras=timed(rows[:2], "", "0-0.4"), method=LINEAR)
    parts = with_hooks(other, left, mask=mask) + with_hooks(None, right, mask=1 - mask)
    with unchanged(model):
        found = sample(ours, parts[0] + parts[1], negative)
        theirs = core_hooks.CombineHooks().combine_hooks(hooks_A=both, hooks_B=other)[0]
        expected = with_hooks(theirs, left, mask=mask)[0] + with_hooks(both, right, mask=1 - mask)[0]
        same(found, sample(model, expected, *with_hooks(both, negative)), "hooks of both")
        differ(found, sample(ours, left, negative), "the mask counts")
        here = with_hooks(hooks, left, mask=mask)[0] + with_hooks(None, right, mask=1 - mask)[0]
        there = with_hooks(both, left, mask=mask)[0] + with_hooks(None, right, mask=1 - mask)[0]
        same(sample(model, here, negative), sample(model, there, negative), "ours in one half only")


@check
def hooks_without_steps_are_the_merge():
    """HOOKS of both nodes are what the patched model does; keyframes of ComfyUI may switch them."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    plain = conditions(clip, "a fox", "")
    patched, *_, hooks = run("LoraAlloyLoader", model=model, loras=text_of(rows), method=TIES)
    stack = run("LoraAlloyStack", loras=text_of(rows))[0]
    (method,) = run("LoraAlloyMethod", method=TIES)
    *_, merged = run("LoraAlloyMerge", stack=stack, method=method, model=model)
    with unchanged(model):
        expected = sample(patched, *plain)
        same(sample(model, *with_hooks(hooks, *plain)), expected, "of the loader")
        same(sample(model, *with_hooks(merged, *plain)), expected, "of the merge node")
        frames = core_hooks.CreateHookKeyframe().create_hook_keyframe(0.0, 0.0)[0]
        off = core_hooks.SetHookKeyframes().set_hook_keyframes(hooks, frames)[0]
        same(sample(model, *with_hooks(off, *plain)), sample(model, *plain), "with keyframes")


@check
def the_merge_node_carries_steps():
    """With a model its hooks are those of the loader; without one it says so, and its hooks refuse."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    plain = conditions(clip, "a fox", "")
    text = timed(rows, "", "0-0.5", "0.5-1")
    stack = run("LoraAlloyStack", loras=text)[0]
    (method,) = run("LoraAlloyMethod", method=TIES)
    lora, report, hooks = run("LoraAlloyMerge", stack=stack, method=method, model=model)
    assert "0.5 to 1 of the sampling: sd15_a 0.7, sd15_c 1.1" in report, report
    ours = run("LoraAlloyLoader", model=model, loras=text, method=TIES)[0]
    with unchanged(model):
        same(sample(model, *with_hooks(hooks, *plain)), sample(ours, *plain), "hooks of the merge node")
    applied = run("LoraAlloyApply", model=model, lora=lora, strength_model=1.0, strength_clip=1.0)[0]
    whole = run("LoraAlloyLoader", model=model, loras=timed(rows, "", "", ""), method=TIES)[0]
    assert_close(weights_of(applied, None), weights_of(whole, None), "lora has all of them")
    _, report, hooks = run("LoraAlloyMerge", stack=stack, method=method)
    assert "steps= of sd15_b, sd15_c is not used" in report and "hooks need model" in report, report
    with refused(merge_ops.ParameterError, "connect model to Merge LoRAs"):
        sample(model, *with_hooks(hooks, *plain))
    assert not model.hook_patches


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
            hooked = core_hooks.SetClipHooks().apply_hooks(clip, scheduled, False, ours[-1])[0]
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
        patched, *_, hooks = run("LoraAlloyLoader", model=model, loras=text_of(rows), method=TIES)
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
    patched, *_, hooks = run("LoraAlloyLoader", model=model, loras=text_of(rows), method=TIES)
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
    spaces = sys.modules["alloy_pack.merge_ops.merging.spaces"]
    found, real = [], spaces.product_thresholds

    def counting(pairs, density, height):
        pairs = list(pairs)
        found.append(len(pairs))
        return real(pairs, density, height)

    spaces.product_thresholds = counting
    try:
        run("LoraAlloyLoader", model=model, loras=timed(rows, "", "", ""), method=TIES)
        alone = sum(found)
        for name, *_ in rows:
            (LORAS / name).touch()  # read anew, so that nothing is known of it
        found.clear()
        steps = ("0:1 1:0", "0-0.2 0.5-0.7", "")
        hooks = run("LoraAlloyLoader", model=model, loras=timed(rows, *steps), method=TIES)[-1]
    finally:
        spaces.product_thresholds = real
    assert sum(found) == alone, (sum(found), alone)
    assert len(hooks.hooks) == 10
    *_, hooks = run("LoraAlloyLoader", model=model, loras=timed(rows, "0-0.2 0.5-0.7", "", ""), method=TIES)
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
        core_hooks.SetHookKeyframes().set_hook_keyframes(out.result[-1], frames)
    assert run("LoraAlloyLoader", model=model, loras="", method=TIES)[-1].hooks == []
    with refused(merge_ops.ParameterError, "this MODEL changes over the sampling"):
        run("LoraAlloyRecord", model=out.result[0], clip=clip, loras="<lora:sd15_a:1:prompt=a fox>")
    with refused(merge_ops.ParameterError, "this MODEL changes over the sampling"):
        run("LoraAlloyMeasure", recording=None, model=out.result[0])


@contextmanager
def refused(kind, says):
    """As pytest.raises, which ComfyUI's interpreter does not have."""
    try:
        yield
    except kind as error:
        assert says in str(error), str(error)
    else:
        raise AssertionError(f"not refused: {says}")
