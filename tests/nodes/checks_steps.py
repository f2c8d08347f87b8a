"""Checks of merges that change over the sampling: against ComfyUI's own hooks, and against steps by hand."""

from itertools import pairwise

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import comfy.utils
import comfy_extras.nodes_custom_sampler as custom
import comfy_extras.nodes_hooks as core_hooks
import torch
from comfy_inside import (
    assert_close,
    check,
    load_model,
    merge_ops,
    run,
    text_of,
    three_loras,
    weights_of,
)
from steps_inside import (
    LINEAR,
    TIES,
    conditions,
    core_hooks_of,
    differ,
    noise_or,
    refused,
    same,
    sample,
    share_before,
    timed,
    unchanged,
    with_hooks,
)


@check
def linear_over_time_is_cores_hooks():
    """Bit for bit: a LoRA that stays, one that ends, and one that changes, with several samplers."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    text = timed(rows, "", "0-0.5", "0:1 0.3:1 0.3:0.2 0.7:0.2 0.7:-0.5 1:-0.5")
    ours, *_, hooks, _, _, _ = run("LoraAlloyLoader", model=model, loras=text, method=LINEAR)
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
    ours, *_, hooks, _, _, _ = run(
        "LoraAlloyLoader", model=model, loras=timed(rows[:2], "", "0-0.4"), method=LINEAR
    )
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
    patched, *_, hooks, _, _, _ = run("LoraAlloyLoader", model=model, loras=text_of(rows), method=TIES)
    stack = run("LoraAlloyStack", loras=text_of(rows))[0]
    (method,) = run("LoraAlloyMethod", method=TIES)
    _, _, merged, *_ = run("LoraAlloyMerge", stack=stack, method=method, model=model)
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
    lora, report, hooks, *_ = run("LoraAlloyMerge", stack=stack, method=method, model=model)
    assert "0.5 to 1 of the sampling: sd15_a 0.7, sd15_c 1.1" in report, report
    ours = run("LoraAlloyLoader", model=model, loras=text, method=TIES)[0]
    with unchanged(model):
        same(sample(model, *with_hooks(hooks, *plain)), sample(ours, *plain), "hooks of the merge node")
    applied = run("LoraAlloyApply", model=model, lora=lora, strength_model=1.0, strength_clip=1.0)[0]
    whole = run("LoraAlloyLoader", model=model, loras=timed(rows, "", "", ""), method=TIES)[0]
    assert_close(weights_of(applied, None), weights_of(whole, None), "lora has all of them")
    _, report, hooks, *_ = run("LoraAlloyMerge", stack=stack, method=method)
    assert "steps= of sd15_b, sd15_c is not used" in report and "hooks need model" in report, report
    with refused(merge_ops.ParameterError, "connect model to Merge LoRAs"):
        sample(model, *with_hooks(hooks, *plain))
    assert not model.hook_patches
