"""Checks of where a merge of loaded LoRAs goes among other patches, and of what is left as it is."""

import comfy.hooks
import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
import comfy.weight_adapter
import torch
from checks_based import write_based
from comfy_inside import (
    LORAS,
    assert_close,
    chained,
    check,
    key_names,
    load_model,
    three_loras,
    weights_of,
)
from loaded_inside import listed, merged, state_of
from safetensors.torch import save_file


def other_weights(model, seed=4):
    """Patches as Merge Models makes them of another model's weights, and these weights."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for key, weight in model.model.state_dict().items():
        if key.startswith("diffusion_model."):
            found[key] = (weight.float() + 0.1 * torch.randn(weight.shape, generator=random)).to(weight.dtype)
    return {key: [(value, lambda weight, **_: weight)] for key, value in found.items()}, found


def model_merge(model, ratio, only="", seed=4):
    """What Merge Models leaves on a model: ``ratio`` of it, and the rest of another one."""
    clone = model.clone()
    for key, patch in other_weights(model, seed)[0].items():
        if only in key:
            clone.add_patches({key: patch}, 1.0 - ratio, ratio)
    return clone


@check
def a_model_merge_stays_in_its_place():
    """Before all LoRAs or after them it changes nothing; between them, the merge takes what it leaves."""
    model, _ = load_model("sd15")
    rows = [(name, s, s) for name, s, _ in three_loras("sd15")]
    base = {key: weight.float() for key, weight in model.model.state_dict().items()}
    other = {key: weight.float() for key, weight in other_weights(model)[1].items()}

    def change(of):
        made = weights_of(listed(of, model)[0], None)
        return {key: made[key].float() - base[key] for key in made}

    def expect(patcher, formula, what):
        for key, weight in weights_of(patcher, None).items():
            wanted = formula(key)
            off = float((weight.float() - wanted).abs().max() / wanted.abs().max())
            assert off < 1e-5, (what, key, off)

    whole = change(rows)
    zero = torch.zeros(())
    first, _ = chained(model_merge(model, 0.25), None, rows)
    new = merged(first, None, rows)
    expect(new[0], lambda key: 0.25 * base[key] + 0.75 * other[key] + whole.get(key, zero), "before")
    assert "patches that are not LoRAs" in new[4] and "after a model merge" not in new[4]
    last = model_merge(chained(model, None, rows)[0], 0.25)
    new = merged(last, None, rows)
    expect(new[0], lambda key: 0.25 * (base[key] + whole.get(key, zero)) + 0.75 * other[key], "after")
    assert [e.strength for e in new[3]] == [s for _, s, _ in rows]
    amid, _ = chained(model_merge(chained(model, None, rows[:1])[0], 0.25), None, rows[1:])
    new = merged(amid, None, rows)
    left = [(rows[0][0], 0.25 * rows[0][1], 1), *rows[1:]]
    reduced = change(left)
    expect(new[0], lambda key: 0.25 * base[key] + 0.75 * other[key] + reduced.get(key, zero), "between")
    assert [e.strength for e in new[3]] == [s for _, s, _ in left]
    assert "at the strength that the model merge leaves of it" in new[4], new[4]
    as_loaded = merged(amid, None, rows, {"method": "linear"})
    assert_close(weights_of(as_loaded[0], None), weights_of(amid, None), "linear")


@check
def what_cannot_be_moved_stays():
    """Shares that differ between weights, a DoRA before a model merge, a patch that depends on the weight."""
    model, _ = load_model("sd15")
    rows = [(name, s, s) for name, s, _ in three_loras("sd15")]
    uneven = model_merge(model_merge(chained(model, None, rows[:1])[0], 0.25, "input"), 0.5, "output")
    chain, _ = chained(uneven, None, rows[1:])
    new = merged(chain, None, rows)
    assert [e.lora_name for e in new[3]] == [name for name, *_ in rows[1:]]
    assert "sd15_a stays as it is: a later model merge leaves different shares" in new[4], new[4]
    wanted = weights_of(listed(rows[1:], uneven)[0], None)
    assert_close(weights_of(new[0], None), wanted, "uneven", 1e-5)

    based = [(write_based("based", "sd15", 3), 1.0, 1.0), *rows]
    chain, _ = chained(model_merge(chained(model, None, based[:2])[0], 0.25), None, based[2:])
    new = merged(chain, None, based)
    assert [e.lora_name for e in new[3]] == [name for name, *_ in rows]
    assert "based stays as it is: its change depends on the weight" in new[4], new[4]

    class Foreign(comfy.weight_adapter.LoRAAdapter):
        """The adapter of another pack, which may do anything."""

    chain, _ = chained(model, None, rows[:1])
    key = next(iter(chain.patches))
    foreign = Foreign(set(), chain.patches[key][0][1].weights)
    amid = chain.clone()
    amid.add_patches({key: foreign}, 0.5)
    chain, _ = chained(amid, None, rows[1:])
    new = merged(chain, None, rows)
    assert [e.lora_name for e in new[3]] == [name for name, *_ in rows[1:]]
    assert (
        f"model: 1 patches that are not LoRAs, such as those of a model merge, stay where they are ({key})"
        in (new[4])
    )
    places = [entry[1] is foreign for entry in new[0].patches[key]]
    assert places == [False, True, False], places


@check
def patches_that_are_not_loras_are_none():
    """A weight that is replaced, one that is widened, the difference of two models: they are left alone."""
    model, _ = load_model("sd15")
    shapes = {key: weight.shape for key, weight in model.model.state_dict().items()}
    keys = [key for key in shapes if key.endswith("to_q.weight")][:2]
    clone = model.clone()
    clone.add_patches({keys[0]: ("set", (torch.ones(shapes[keys[0]]),))}, 1.0)
    clone.add_patches({keys[1]: ("diff", (torch.ones(shapes[keys[1]]), {"pad_weight": True}))}, 1.0)
    new = merged(clone)
    assert new[0] is clone and new[3] == () and "no LoRA on MODEL or CLIP" in new[4], new[4]
    assert "2 patches that are not LoRAs" in new[4]
    empty = merged(model)
    assert empty[0] is model and empty[2].merged is None
    # differences alone are a LoRA, as of files of them
    difference = {f"{stem}.diff": torch.randn(shape) * 0.1 for stem, shape in key_names(model, None).values()}
    save_file(difference, LORAS / "differences.safetensors")
    rows = [("differences.safetensors", 0.5, 0.5), (three_loras("sd15")[0][0], 0.5, 0.5)]
    new = merged(chained(model, None, rows)[0], None, rows)
    assert [e.lora_name for e in new[3]] == [name for name, *_ in rows]
    assert_close(weights_of(new[0], None), weights_of(listed(rows, model)[0], None), "differences")


@check
def hooks_and_bypass_loaders_are_named():
    """They are no patches: what they do stays, and the node says that it does."""
    model, clip = load_model("sd15")
    (a, *_), (b, *_), _ = three_loras("sd15")
    chain = chained(model, clip, [(b, 0.6, 0.6)])
    bypassed = comfy.sd.load_bypass_lora_for_models(*chain, state_of(a), 0.5, 0.5)
    new = merged(*bypassed, [(b, 1, 1)])
    assert [e.lora_name for e in new[3]] == [b]
    assert "model: LoRAs that came by a bypass loader are no patches" in new[4], new[4]
    assert "CLIP: LoRAs that came by a bypass loader" in new[4]
    assert "bypass_lora" in new[0].injections and "bypass_lora" in new[1].patcher.injections
    hooked = chain[1].clone()
    hooked.patcher.forced_hooks = comfy.hooks.create_hook_lora(state_of(a), 1.0, 1.0)
    new = merged(chain[0], hooked, [(b, 1, 1)])
    assert "CLIP: LoRAs that came by hooks are no patches" in new[4], new[4]
    assert new[1].patcher.forced_hooks is not None


@check
def merges_of_this_pack_are_known():
    """A linear one is the LoRAs that it is made of; another is a patch like any other, and stays."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    linear = listed(rows, model, clip, {"method": "linear"})
    new = merged(*linear[:2], rows)
    assert [(e.lora_name, e.strength, e.strength_clip) for e in new[3]] == rows, new[4]
    assert_close(weights_of(*new[:2]), weights_of(*listed(rows, model, clip)[:2]), "from linear")
    first = listed(rows[:2], model, clip)
    assert merged(*first[:2], rows)[3] == ()
    more = chained(*first[:2], rows[2:])
    new = merged(*more, rows)
    assert [e.lora_name for e in new[3]] == [rows[2][0]]
    assert "model: " in new[4] and "patches that are not LoRAs" in new[4]
    assert_close(weights_of(*new[:2]), weights_of(*listed(rows[2:], *first[:2])[:2]), "after a merge", 1e-5)
