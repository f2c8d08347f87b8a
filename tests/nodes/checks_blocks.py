"""Checks of block strengths: names of real models, patched weights, refusals, other packs, recipes."""

from importlib import import_module

import comfy.utils
import torch
from comfy_inside import (
    LORAS,
    MODELS,
    NODES,
    assert_close,
    chained,
    check,
    load_model,
    merge_ops,
    patched,
    run,
    text_of,
    three_loras,
    weights_of,
)
from safetensors.torch import load_file, save_file

facts_of = import_module("alloy_pack.merge_ops.blocks.names").facts_of
SDXL = {
    "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
}  # fmt: skip
SD15 = {
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
}  # fmt: skip
TEXTS = {
    "sd15": ["down:0.5 mid:2 attn:0.25 te:0", "", "0.5 attn2:-1 te1:0.25"],
    "sdxl": ["in4:0.5 out0:0 ff:0.25", "", ",".join(str(n / 8) for n in range(12))],
    "flux": ["double:0.5 attn:0.25 single.0:0", "", "0.5 ff:0"],
    "sd3": ["blocks.0:0.5 attn:0.25 ff:0", "", "rest:0.5"],
    "wan": ["blocks.0:0.5 cross_attn:0.25 ff:0", "", "rest:0.5"],
}


def module(key):
    return key.removesuffix(".weight").removesuffix(".bias")


@check
def both_names_of_each_weight_say_the_same():
    """All of SDXL and SD1.5 by ComfyUI's own map, and the transformers that have diffusers' names too."""
    for config in (SDXL, SD15):
        names = comfy.utils.unet_to_diffusers(config)
        assert len(names) > 600
        for diffusers, own in names.items():
            one, other = facts_of(f"unet.{module(diffusers)}"), facts_of(f"diffusion_model.{module(own)}")
            assert one == other, (diffusers, own, one, other)
    counted = 0
    maps = {
        "flux": comfy.utils.flux_to_diffusers({"depth": 19, "depth_single_blocks": 38, "hidden_size": 64}),
        "sd3": comfy.utils.mmdit_to_diffusers({"depth": 24, "num_blocks": 24}),
    }
    if hasattr(comfy.utils, "z_image_to_diffusers"):  # not in the oldest ComfyUI
        maps["z-image"] = comfy.utils.z_image_to_diffusers({"n_layers": 30, "dim": 64})
    for name, mapped in maps.items():
        for diffusers, own in mapped.items():
            if isinstance(own, str) or own[1] is None:  # not a slice of a fused weight
                key = own if isinstance(own, str) else own[0]
                one = facts_of(f"transformer.{module(diffusers)}")
                other = facts_of(f"unet.{module(key).replace('.', '_')}")
                assert one == other, (name, diffusers, key, one, other)
                counted += 1
    assert counted > 500


def scaled_file(name, text):
    """The LoRA file with its alphas multiplied by hand, layers at 0 left out: the name of the new file."""
    tensors, kept = load_file(LORAS / name), {}
    strengths = merge_ops.BlockStrengths.parse(text)
    for stem in sorted({key.partition(".lora_")[0] for key in tensors if ".lora_" in key}):
        factor = strengths.factor(import_module("alloy_pack.merge_ops.names.spelling").canonical_name(stem))
        if factor:
            rank = tensors[f"{stem}.lora_down.weight"].shape[0]
            alpha = tensors.get(f"{stem}.alpha", torch.tensor(float(rank)))
            kept |= {key: value for key, value in tensors.items() if key.startswith(f"{stem}.lora_")}
            kept[f"{stem}.alpha"] = alpha * factor
    assert 0 < len(kept) <= len(tensors) * 2
    save_file(kept, LORAS / f"scaled_{name}")
    return f"scaled_{name}"


def with_blocks(rows, texts):
    lines = text_of(rows).splitlines()
    return "\n".join(f"{line[:-1]}:blocks={text}>" for line, text in zip(lines, texts, strict=True))


for _name in MODELS:

    @check
    def linear_is_chained_loras_scaled_by_hand(name=_name):
        """Load LoRA, one after the other, of files whose alphas were multiplied; DARE, of those files too."""
        model, clip = load_model(name)
        rows, texts = three_loras(name), TEXTS[name]
        by_hand = [
            (scaled_file(file, text) if text else file, *strengths)
            for (file, *strengths), text in zip(rows, texts, strict=True)
        ]
        out = run("LoraAlloyLoader", model=model, clip=clip, loras=with_blocks(rows, texts), method="linear")
        wanted = weights_of(*chained(model, clip, by_hand))
        assert_close(weights_of(*out[:2]), wanted, name, 1e-6)
        plain = weights_of(*chained(model, clip, rows))
        assert any(not torch.equal(wanted[key], plain[key]) for key in wanted), "the strengths do nothing"
        given = {"method": {"method": "magnitude_prune", "density": 0.4}, "model": model, "clip": clip}
        ours = run("LoraAlloyLoader", loras=with_blocks(rows, texts), **given)
        hand = run("LoraAlloyLoader", loras=text_of(by_hand), **given)
        assert_close(weights_of(*ours[:2]), weights_of(*hand[:2]), f"{name} pruned", 1e-5)


@check
def strengths_pass_through_all_nodes():
    """Stack, Merge, Apply, Save and Recipe; the nodes say on how many layers each acts."""
    model, clip = load_model("sd15")
    rows, texts = three_loras("sd15"), ["down:0.5 te:0", "", "OUTALL"]
    text, chosen = with_blocks(rows, texts), {"method": "ties", "density": 0.5}
    with torch.inference_mode():
        one = NODES["LoraAlloyLoader"].execute(model=model, clip=clip, loras=text, method=chosen)
        stack = NODES["LoraAlloyStack"].execute(loras=text)
    says = one.ui.as_dict()["text"][0]
    assert "sd15_a: blocks down:0.5 te:0: " in says and "left out" in says, says
    assert "sd15_c: blocks OUTALL" in says and "sd15_b: blocks" not in says, says
    assert stack.result[1] == [(n, s, c) for n, s, c in rows]
    note = stack.ui.as_dict()["text"][0]
    assert "cannot carry block strengths" in note and "sd15_a, sd15_c" in note, note
    assert not NODES["LoraAlloyStack"].execute(loras=text_of(rows)).ui.warnings
    (method,) = run("LoraAlloyMethod", method=chosen)
    lora, report, *_ = run("LoraAlloyMerge", stack=stack.result[0], method=method)
    assert "blocks OUTALL" in report, report
    recipe = merge_ops.Recipe.of(lora.merged)
    assert recipe.blocks == ["down:0.5 te:0", None, "OUTALL"]
    again, _ = run("LoraAlloyRecipe", lora_name="none", recipe_json=recipe.to_json())
    wanted = weights_of(*one.result[:2])
    for found in (lora, again):
        applied = run(
            "LoraAlloyApply", model=model, clip=clip, lora=found, strength_model=1.0, strength_clip=1.0
        )
        assert_close(weights_of(*applied), wanted, "composed", 1e-6)
    for layer in ("mid", "up"):  # what a LoRA at 0 does not do
        alone = run(
            "LoraAlloyLoader", model=model, loras=f"<lora:{rows[0][0]}:1:lbw={layer}:0>", method=chosen
        )
        assert not any("middle" in key for key in patched(alone[0])) or layer == "up"


@check
def wrong_strengths_are_refused_when_queued():
    """By both nodes that have a list; a line that is off may say anything."""
    name = three_loras("sd15")[0][0]
    for node in ("LoraAlloyLoader", "LoraAlloyStack"):
        validate = NODES[node].validate_inputs
        assert (
            validate(loras=f"<lora:{name}:1:blocks=down:0.5 mid:1>\n# <lora:{name}:1:blocks=dwon:1>") is True
        )
        for text, says in (("dwon:1", "did you mean 'down'"), ("1,2,3", "12, 17, 20 or 26 values")):
            found = validate(loras=f"<lora:{name}:1:blocks={text}>")
            assert says in str(found) and str(found).startswith(name), found
    try:
        run(
            "LoraAlloyLoader", model=load_model("sd15")[0], loras=f"<lora:{name}:1:lbw=NONE>", method="linear"
        )
    except merge_ops.MergeError as error:
        assert "nothing is merged" in str(error), error
    else:
        raise AssertionError("a merge of nothing")
