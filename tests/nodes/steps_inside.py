"""Sampling with merges that change over it, for the checks of them."""

from contextlib import contextmanager

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import comfy.utils
import comfy_extras.nodes_hooks as core_hooks
import torch

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


@contextmanager
def refused(kind, says):
    """As pytest.raises, which ComfyUI's interpreter does not have."""
    try:
        yield
    except kind as error:
        assert says in str(error), str(error)
    else:
        raise AssertionError(f"not refused: {says}")
