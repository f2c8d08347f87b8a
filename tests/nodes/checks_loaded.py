"""Checks of merging what other loaders put on MODEL and CLIP: the same LoRAs, strengths and order."""

from importlib import import_module

import comfy.hooks
import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
import comfy.weight_adapter
import torch
from comfy_inside import (
    LORAS,
    assert_close,
    chained,
    check,
    key_names,
    load_model,
    run,
    three_loras,
    weights_of,
)
from loaded_inside import listed, merged, mixed_rows, state_of
from packed_weights import load_quantised
from safetensors.torch import load_file, save_file

recipes = import_module("alloy_pack.merge_ops.recipes.recipe")
keywords = import_module("alloy_pack.nodes.values.keywords")


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
