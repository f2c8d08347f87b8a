"""Checks of what ``nodes/model/core_bypass.py`` expects of bypass: one for each function, by its name."""

from importlib import import_module

import comfy.sd
import torch
from bypass_inside import assert_near, outputs_of
from comfy.weight_adapter.bypass import BypassForwardHook
from comfy.weight_adapter.lora import LoRAAdapter
from comfy_inside import check, load_model
from torch import nn
from torch.nn import functional

core = import_module("alloy_pack.nodes.model.core_bypass")
KEY = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"


def adapter(model, seed, key=KEY):
    """One of ComfyUI's, and the change that it makes to the weight."""
    rows, columns = model.model.state_dict()[key].shape
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(rows, 4, generator=generator), torch.randn(4, columns, generator=generator)
    return LoRAAdapter(set(), (up, down, 2.0, None, None, None)), up @ down / 2


@check
def core_add_bypass():
    """Adapters add up, also on what is there by bypass, and come off; the model that was cloned has none."""
    model, _ = load_model("sd15")
    before = outputs_of(model, [KEY])[KEY]
    (one, change), (two, other) = adapter(model, 1), adapter(model, 2)
    first = model.clone()
    core.add_bypass(first, {KEY: one}, 0.5)
    second = first.clone()
    core.add_bypass(second, {KEY: two}, -1.0)
    wanted = model.clone()
    wanted.add_patches({KEY: (change,)}, 0.5)
    assert_near(outputs_of(first, [KEY]), outputs_of(wanted, [KEY]), "one")
    wanted.add_patches({KEY: (other,)}, -1.0)
    for _ in range(2):
        assert_near(outputs_of(second, [KEY]), outputs_of(wanted, [KEY]), "two")
        assert torch.equal(outputs_of(model, [KEY])[KEY], before)
    assert not model.injections and not second.patches


@check
def core_has_bypass():
    """That of this pack and that of ComfyUI's own loaders are one."""
    model, _ = load_model("sd15")
    clone = model.clone()
    core.add_bypass(clone, {KEY: adapter(model, 1)[0]}, 1.0)
    rows, columns = model.model.state_dict()[KEY].shape
    stem = KEY.removesuffix(".weight")
    state = {
        f"{stem}.lora_up.weight": torch.ones(rows, 1),
        f"{stem}.lora_down.weight": torch.ones(1, columns),
    }
    theirs = comfy.sd.load_bypass_lora_for_models(model, None, state, 1.0, 0)[0]
    assert not core.has_bypass(model) and core.has_bypass(clone) and core.has_bypass(theirs)
    assert clone.injections.keys() == theirs.injections.keys()


@check
def core_module_of():
    """By the key of its weight or bias, of MODEL and CLIP."""
    model, clip = load_model("sd15")
    assert core.module_of(model, KEY) is model.model.get_submodule(KEY.removesuffix(".weight"))
    key = next(key for key in clip.patcher.model.state_dict() if key.endswith("fc1.bias"))
    assert core.module_of(clip, key).bias is clip.patcher.model.get_parameter(key)


@check
def core_takes_bypass():
    """True only where an output with an adapter's is that of the changed weight; ComfyUI asks of no layer."""

    class QuantLinear(nn.Module):
        """Of a pack."""

    assert core.takes_bypass(QuantLinear()) and not core.takes_bypass(None)
    assert not core.takes_bypass(nn.Embedding(3, 2)) and not core.takes_bypass(nn.LayerNorm(2))
    assert not core.takes_bypass(nn.MultiheadAttention(4, 2).out_proj)
    layers = [nn.Linear(6, 4), nn.Conv1d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 3, 2, 1, 2), nn.Conv3d(6, 4, 3)]
    layers += [nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular")]
    for layer in layers:
        wide = layer.weight[0].numel()
        up, down = torch.randn(4, 2), torch.randn(2, wide)
        x = torch.randn(1, 6, *(7 for _ in layer.weight.shape[2:]))
        hook = BypassForwardHook(layer, LoRAAdapter(set(), (up, down, None, None, None, None)))
        hook.inject()
        try:
            got = layer(x)
        except RuntimeError:
            got = None
        hook.eject()
        with torch.no_grad():
            layer.weight += (up @ down).view_as(layer.weight)
        wanted = layer(x)
        is_same = got is not None and torch.allclose(got, wanted, atol=1e-4)
        assert core.takes_bypass(layer) is is_same, layer


@check
def core_count_rows():
    """The size of the output, if the layer tells it."""
    bare = nn.Module()
    bare.weight = nn.Parameter(torch.zeros(5, 2))
    assert [core.count_rows(each) for each in (nn.Linear(3, 7), nn.Conv2d(3, 6, 3), bare)] == [7, 6, None]


@check
def core_apply_delta():
    """Linear layers and convolutions, by what ComfyUI's hook notes of the layer on its adapter."""
    for layer in (nn.Linear(6, 4), nn.Conv2d(6, 4, 3, stride=2, padding=1)):
        delta = torch.randn(4, layer.weight[0].numel())
        held = LoRAAdapter(set(), None)
        BypassForwardHook(layer, held)
        x = torch.randn(1, 6, *(7 for _ in layer.weight.shape[2:]))
        own = core.apply_delta(held, x, delta)
        if isinstance(layer, nn.Linear):
            wanted = functional.linear(x, delta)
        else:
            wanted = functional.conv2d(x, delta.view_as(layer.weight), stride=2, padding=1)
        assert torch.equal(own, wanted)
