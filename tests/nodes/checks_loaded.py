"""Checks of merging what other loaders put on MODEL and CLIP: the same LoRAs, strengths and order."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import comfy.hooks
import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
import comfy.weight_adapter
import torch
from checks_based import write_based
from checks_kinds import write_kinds
from comfy_inside import (
    LORAS,
    NODES,
    assert_close,
    chained,
    check,
    key_names,
    load_model,
    run,
    text_of,
    three_loras,
    weights_of,
    write_lora,
)
from packed_weights import load_quantised
from safetensors.torch import load_file, save_file

recipes = sys.modules["alloy_pack.merge_ops.recipes.recipe"]
keywords = sys.modules["alloy_pack.nodes.values.keywords"]
TIES = {"method": "ties", "density": 0.3}


@contextmanager
def workflow_of(rows):
    """The node in a workflow whose loader names these files."""
    names = {f"lora_{i}": {"on": True, "lora": name} for i, (name, *_) in enumerate(rows)}
    workflow = {"1": {"inputs": names}, "2": {"inputs": {"model": ["1", 0]}}}
    node = NODES["LoraAlloyMergeLoaded"]
    before = node.hidden
    node.hidden = SimpleNamespace(prompt=workflow, unique_id="2")
    try:
        yield
    finally:
        node.hidden = before


def merged(model, clip=None, rows=(), method=TIES, **more):
    """Merge what is loaded, in a workflow that names the files of ``rows``."""
    with workflow_of(rows):
        return run("LoraAlloyMergeLoaded", model=model, clip=clip, method=method, **more)


def listed(rows, model, clip=None, method=TIES, **more):
    """Load & Merge of the same list."""
    return run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method=method, **more)


def state_of(file):
    return comfy.utils.load_torch_file(str(LORAS / file), safe_load=True)


def mixed_rows(model_name):
    """A plain LoRA, one of LoHa, LoKr and differences, and one of DoRA, GLoRA, OFT and BOFT."""
    return [
        (write_lora("plain", model_name, 4, 2, 1), 0.7, 0.4),
        (write_kinds("kinds", model_name, 2), -0.6, 0.9),
        (write_based("based", model_name, 3), 1.0, 0.0),
    ]


def tuckered(model_name):
    """A LoCon whose convolutions have a Tucker core, and biases and a norm."""
    random, tensors = torch.Generator().manual_seed(9), {}
    for stem, shape in sorted(key_names(*load_model(model_name)).values()):
        if len(shape) == 4 and shape[2] == 3:
            tensors[f"{stem}.lora_up.weight"] = torch.randn(shape[0], 4, 1, 1, generator=random) * 0.1
            tensors[f"{stem}.lora_mid.weight"] = torch.randn(4, 4, 3, 3, generator=random) * 0.1
            tensors[f"{stem}.lora_down.weight"] = torch.randn(4, shape[1], 1, 1, generator=random) * 0.1
            tensors[f"{stem}.alpha"] = torch.tensor(2.0)
            tensors[f"{stem}.diff_b"] = torch.randn(shape[0], generator=random) * 0.1
    save_file(tensors, LORAS / "tucker.safetensors")
    return "tucker.safetensors"


@check
def linear_leaves_every_bit():
    """Of every kind, on every kind of model: the patches are the very same ones."""
    for model_name in ("sd15", "flux", "sd3"):
        model, clip = load_model(model_name)
        rows = mixed_rows(model_name)
        rows += [(tuckered("sd15"), 0.8, 0.8)] if model_name == "sd15" else []
        chain = chained(model, clip, rows)
        for known in (rows, ()):
            new_model, new_clip, lora, stack, report = merged(*chain, known, {"method": "linear"})
            assert new_model.patches_uuid == chain[0].patches_uuid, "nothing has to be loaded again"
            assert_close(weights_of(new_model, new_clip), weights_of(*chain), model_name)
            assert len(stack) == len(rows) and "linear of" in report and lora.merged is not None, report
        plain = chained(model, clip, rows[:2])
        lora = merged(*plain, rows[:2], {"method": "linear"})[2]
        again = run("LoraAlloyApply", model=model, clip=clip, lora=lora, strength_model=1, strength_clip=1)
        assert_close(weights_of(*again), weights_of(*plain), f"{model_name} as one LoRA", 1e-5)


@check
def a_method_gives_what_load_and_merge_gives():
    """Bit for bit, whatever kinds the LoRAs are of: the same LoRAs in the same order, from the same files."""
    for model_name, rows in (("sd15", three_loras("sd15")), ("flux", mixed_rows("flux"))):
        model, clip = load_model(model_name)
        chain = chained(model, clip, rows)
        for method in ("ties", "dare_ties"):
            new_model, new_clip, _, stack, report = merged(*chain, rows, {"method": method}, seed=5)
            found = [(one.lora_name, one.strength, one.strength_clip) for one in stack]
            assert found == (rows if clip else [(name, s, 0) for name, s, _ in rows]), found
            wanted = listed(rows, model, clip, {"method": method}, seed=5)
            assert_close(weights_of(new_model, new_clip), weights_of(*wanted[:2]), f"{model_name} {method}")
            assert "stay" not in report and "not known" not in report, report
        assert model.patches == {}, "the model that came in is as it was"


@check
def a_lora_whose_file_is_not_known_is_merged_all_the_same():
    """The numbers are on the model; only name and SHA-256 are not, and the recipe makes up neither."""
    model, clip = load_model("sd15")
    rows = [*mixed_rows("sd15"), (tuckered("sd15"), 0.8, 0.8)]
    chain = chained(model, clip, rows)
    wanted = listed(rows, model, clip)
    new_model, new_clip, lora, stack, report = merged(*chain)
    assert_close(weights_of(new_model, new_clip), weights_of(*wanted[:2]), "without files", 1e-5)
    assert [one.lora_name for one in stack] == [None] * 4
    assert "the file of LoRA 1 on the model and of LoRA 2 on the model" in report, report
    sources = recipes.recipe_of(lora.merged)["sources"]
    assert [(one["name"], one["sha256"]) for one in sources] == [
        (f"LoRA {number} on the model", None) for number in (1, 2, 3, 4)
    ]
    known = recipes.recipe_of(merged(*chain, rows)[2].merged)["sources"]
    assert [one["name"] for one in known] == ["plain", "kinds", "based", "tucker"]
    assert all(len(one["sha256"]) == 64 for one in known)
    other = load_file(LORAS / rows[0][0])
    other[max(other)].view(-1)[0] += 1
    save_file(other, LORAS / "nearly.safetensors")  # one number differs
    assert merged(*chain, [("nearly.safetensors", 1, 1)])[3][0].lora_name is None


@check
def parts_strengths_and_files_that_come_twice():
    """MODEL alone, CLIP loaded elsewhere, zero and negative strengths, one file loaded twice."""
    model, clip = load_model("sd15")
    (a, *_), (b, *_), (c, *_) = three_loras("sd15")
    rows = [(a, 0.0, 0.8), (b, -1.2, 0.0), (a, 0.5, 0.5), (c, 0.3, -0.3)]
    chain = chained(model, clip, rows)
    new = merged(*chain, rows)
    assert [(e.lora_name, e.strength, e.strength_clip) for e in new[3]] == rows
    assert_close(weights_of(*new[:2]), weights_of(*listed(rows, model, clip)[:2]), "twice")
    alone = merged(chain[0], None, rows)
    wanted = listed(rows[1:], model)  # the first has no strength in MODEL
    assert_close(weights_of(alone[0], None), weights_of(wanted[0], None), "without CLIP")
    assert alone[1] is None
    # two loaders, one for each part, as when the CLIP comes from another branch
    apart = chained(model, None, [(b, 0.6, 0), (c, 0.4, 0)])[0], chained(None, clip, [(c, 0, 0.9)])[1]
    new = merged(*apart, [(b, 1, 1), (c, 1, 1)])
    assert [(e.lora_name, e.strength, e.strength_clip) for e in new[3]] == [(b, 0.6, 0), (c, 0.4, 0.9)]
    wanted = listed([(b, 0.6, 0.6), (c, 0.4, 0.4)], model)[0], listed([(c, 0.9, 0.9)], model, clip)[1]
    assert_close(weights_of(*new[:2]), weights_of(*wanted), "parts")
    twice = state_of(a)
    shared = comfy.lora.load_lora(
        comfy.lora_convert.convert_lora(twice), comfy.lora.model_lora_keys_unet(model.model, {})
    )
    again = model.clone()
    again.add_patches(shared, 0.5)
    again.add_patches(shared, 0.25)  # a loader that keeps what it read
    assert [(e.lora_name, e.strength) for e in merged(again, None, [(a, 1, 1)])[3]] == [(a, 0.5), (a, 0.25)]
    eight = {
        key: value if key.endswith("alpha") else value.to(torch.float8_e4m3fn)
        for key, value in load_file(LORAS / b).items()
    }
    save_file(eight, LORAS / "eight.safetensors")
    rows = [("eight.safetensors", 0.5, 0.5), (c, 0.3, 0.3)]
    new = merged(*chained(model, clip, rows), rows)
    assert [e.lora_name for e in new[3]] == [name for name, *_ in rows]


@check
def strengths_by_block_of_other_loaders():
    """A loader that adds each weight at a strength of its own, some at zero: kept, and not in the recipe."""
    model, _ = load_model("sd15")
    (a, *_), (b, *_), _ = three_loras("sd15")
    loaded = comfy.lora.load_lora(
        comfy.lora_convert.convert_lora(state_of(a)), comfy.lora.model_lora_keys_unet(model.model, {})
    )
    by_block = model.clone()
    for key, value in loaded.items():
        ratio = 0.5 if ".attn1." in key else 0.0 if ".attn2." in key else 1.0
        by_block.add_patches({key: value}, 0.8 * ratio)
    both, _ = chained(by_block, None, [(b, 0.6, 0.6)])
    new = merged(both, None, [(a, 1, 1), (b, 1, 1)])
    scaled = {
        key: value * 0.5 if "attn1" in key and key.endswith("alpha") else value
        for key, value in load_file(LORAS / a).items()
        if "attn2" not in key and not key.startswith("lora_te")
    }
    save_file(scaled, LORAS / "scaled.safetensors")  # the LoRA as the loader leaves it
    wanted = listed([("scaled.safetensors", 0.8, 0.8), (b, 0.6, 0.6)], model)
    assert_close(weights_of(new[0], None), weights_of(wanted[0], None), "by block", 1e-6)
    assert [(e.lora_name, e.strength) for e in new[3]] == [(a, 0.8), (b, 0.6)]
    assert "strengths of their own (0 to 1 times" in new[4], new[4]
    assert [one["sha256"] is None for one in recipes.recipe_of(new[2].merged)["sources"]] == [True, False]


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


@check
def quantised_weights_are_merged_like_others():
    """ComfyUI unpacks fp8 weights for patches, whoever added them."""
    model, _ = load_quantised("float8_e4m3fn")
    rows = [(name, s, s) for name, s, _ in three_loras("flux")]
    chain, _ = chained(model, None, rows)
    new, wanted = merged(chain, None, rows)[0], listed(rows, model)[0]
    assert new.patches.keys() == wanted.patches.keys() != set()
    for key in new.patches:
        with torch.inference_mode():
            both = [one.patch_weight_to_device(key, return_weight=True) for one in (new, wanted)]
        assert torch.equal(*(one.dequantize() if hasattr(one, "dequantize") else one for one in both)), key


@check
def other_strengths_than_were_loaded():
    """0 takes the LoRAs off; the whole merge, or one LoRA of it, at another strength."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    chain = chained(model, clip, rows)
    off = merged(*chain, rows, strength=0.0)
    assert off[0].patches == {} and off[1].patcher.patches == {} and "taken off" in off[4], off[4]
    assert off[0].patches_uuid != chain[0].patches_uuid and off[2].merged is None and len(off[3]) == 3
    double = merged(*chain, rows, {"method": "linear"}, strength=2.0)
    wanted = chained(model, clip, [(name, 2 * s, 2 * c) for name, s, c in rows])
    assert_close(weights_of(*double[:2]), weights_of(*wanted), "twice as strong", 1e-5)
    swept = keywords.MethodChoice(swept=(("strength 2", 0.25),))
    new = merged(*chain, rows, sweep=swept)
    wanted = listed([rows[0], (rows[1][0], 0.25, 0.25), rows[2]], model, clip)
    assert_close(weights_of(*new[:2]), weights_of(*wanted[:2]), "one of them")
    assert new[4].startswith("strength 2=0.25: ties of 3 LoRAs"), new[4]
