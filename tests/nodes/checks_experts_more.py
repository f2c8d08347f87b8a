"""Checks of lists for two models with all that a list can hold: steps, kinds, recordings, files of both."""

import json
from dataclasses import replace

import torch
from checks_attachments import found as attached
from checks_attachments import text_on
from checks_based import dora, write_based
from checks_control import write_control
from checks_kinds import write_kinds
from comfy_inside import (
    BASE,
    LORAS,
    NODES,
    assert_close,
    check,
    patched,
    run,
    weights_of,
    write_lora,
)
from experts_inside import LINEAR, TIES, alone, both, files, low_of, pair, refused, rows
from learning_inside import SMALL, fresh, text
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from steps_inside import conditions, differ, same, sample, unchanged, with_hooks


@check
def steps_hold_in_each_model():
    """Pictures of MODEL and of HOOKS of both, against nodes of their own; CLIP has the full strength."""
    high, low, clip = pair("sd15")
    style, style_low, char, *_ = files("sd15")
    text = f"<lora:{style}:0.8:0.5:steps=0-0.5>\n<lora:{style_low}:0.7:0.6>\n<lora:{char}:0.9:0.4>"
    lines = text.splitlines()
    found, told = both(text, "sd15")
    assert "high-noise model: 0 to 0.5 of the sampling: sd15_style_high_noise 0.8, sd15_char 0.9" in told, (
        told
    )
    assert told.count("steps= of sd15_style_high_noise holds in model and hooks") == 1, told
    plain = conditions(clip, "a fox", "")
    with unchanged(high):
        for model, hooks, base, listed in (
            ("model", "hooks", high, lines[::2]), ("model_low", "hooks_low", low, lines[1:]),
        ):  # fmt: skip
            one = run("LoraAlloyLoader", model=base, clip=clip, loras="\n".join(listed), method=TIES)
            expected = sample(one[0], *plain)
            same(sample(found[model], *plain), expected, model)
            same(sample(base, *with_hooks(found[hooks], *plain)), expected, hooks)
            differ(sample(base, *plain), expected, "without")
    steady = text.replace(":steps=0-0.5", "")
    whole = run("LoraAlloyLoader", model=high, clip=clip, loras=steady, method=TIES)[1]
    assert_close(weights_of(None, found["clip"]), weights_of(None, whole), "CLIP")


@check
def every_kind_goes_to_its_model():
    """DoRA against the weights of its own model; LoHa, LoKr and full differences; control LoRAs of Flux."""
    high, low, _ = pair()
    based = write_based("based_low_noise", "wan", 3, (dora,))
    kinds = write_kinds("kinds", "wan", 2)
    char = files()[2]
    text = f"<lora:{kinds}:0.6>\n<lora:{based}:1>\n<lora:{char}:0.5>"
    lines = text.splitlines()
    for method in (LINEAR, TIES):
        found, told = both(text, method=method)
        assert_close(patched(found["model"]), alone(high, "\n".join(lines[::2]), method=method), "high")
        assert_close(patched(found["model_low"]), alone(low, text, method=method), "low")
        assert told.count("based_low_noise is a DoRA") == 1, told
        assert "low-noise model: based_low_noise is a DoRA and " in told, told
    found, told = both(text.replace(f"{based}:1", f"{based}:1:on=both"), method=LINEAR)
    assert_close(patched(found["model"]), alone(high, text, method=LINEAR), "on=both")
    flux, low_flux, _ = pair("flux")
    control = write_control(1)
    plain = write_lora("flux_char", "flux", 4, 4, 1)
    found, _ = both(f"<lora:{control}:1:on=low>\n<lora:{plain}:0.5>", "flux", LINEAR)
    assert_close(patched(found["model"]), alone(flux, f"<lora:{plain}:0.5>", method=LINEAR), "flux")
    wanted = alone(low_flux, f"<lora:{control}:1>\n<lora:{plain}:0.5>", method=LINEAR)
    assert_close(patched(found["model_low"]), wanted, "control")


@check
def metadata_is_that_of_each_chain():
    """On MODEL, the low-noise model and CLIP, as after chains of Load LoRA; also of LoRAs without text."""
    _, _, clip = pair("sd15")
    tensors = load_file(LORAS / write_lora("meta", "sd15", 2, 2, 1, every=9))
    unet = {key: tensor for key, tensor in tensors.items() if "text" not in key and "lora_te" not in key}
    assert 0 < len(unet) < len(tensors)
    for name, factor in (("meta_high_noise", "2"), ("meta_low_noise", "3")):
        save_file(unet, LORAS / f"{name}.safetensors", {"reference_downscale_factor": factor})
    found, told = both("<lora:meta_high_noise:1>\n<lora:meta_low_noise:1>", "sd15")
    encoder = found["clip"]
    assert encoder is not clip and not encoder.patcher.patches
    stated = [each.get_attachment("lora_metadata") for each in (found["model"], encoder.patcher)]
    assert stated == [{"reference_downscale_factor": factor} for factor in ("2", "3")], stated
    assert attached(found["model_low"], encoder)[2] == 3
    assert "put meta_high_noise last" in told, told


@check
def files_of_both_experts_are_divided():
    """As diffusers writes them: transformer to MODEL and transformer_2 to the other, as by two files."""
    high, low, _ = pair()
    whole = {}
    for name, part in (("first", "transformer"), ("second", "transformer_2")):
        (file,) = files(names=(name,))
        own = {
            f"transformer{key.removeprefix('diffusion_model')}": each
            for key, each in load_file(LORAS / file).items()
        }
        assert all(key.startswith("transformer.") for key in own)
        own = {key: each * (1 + (name == "second")) for key, each in own.items()}
        save_file(own, LORAS / file)
        whole |= {key.replace("transformer", part, 1): each for key, each in own.items()}
    save_file(whole, LORAS / "whole.safetensors")
    save_file({k: v for k, v in whole.items() if "transformer_2" in k}, LORAS / "second.safetensors")
    char = files()[2]
    for method in (LINEAR, TIES, {"method": "dare_ties", "density": 0.4}):
        found, told = both(f"<lora:whole:0.8>\n<lora:{char}:0.5>", method=method)
        wanted = alone(high, f"<lora:wan_first:0.8>\n<lora:{char}:0.5>", method=method)
        assert_close(patched(found["model"]), wanted, "transformer")
        wanted = alone(low, f"<lora:wan_second:0.8>\n<lora:{char}:0.5>", method=method)
        assert_close(patched(found["model_low"]), wanted, "transformer_2")
        assert told.splitlines()[0].endswith(": whole (by its layers), wan_char"), told
    found, told = both("<lora:second:1>")
    assert_close(patched(found["model_low"]), alone(low, "<lora:wan_second:1>"), "only the second")
    assert "high-noise model: no LoRA" in told and "second (by its layers)" in told, told
    found, told = both("<lora:whole:1:on=high>")
    assert "whole: its layers of transformer_2 are left out, since it is for the high-noise" in told, told
    assert found["lora_low"].merged is None
    found, _ = both(f"<lora:whole:1>\n<lora:{char}:0.4:on=high>\n<lora:{char}:-0.3:on=low>")
    names = found["lora_low"]
    assert [names.merged.request.weights, found["lora"].merged.request.weights] == [(1, -0.3), (1, 0.4)]
    assert not any("transformer_2" in name for name in names), list(names)[:3]
    assert names.merged.loras[0].sha256 is None, "no recipe may name the whole file for a part of it"
    shown = text_on("LoraAlloySave", lora=names, filename_prefix="loras/part", format="kohya", rank=8)
    with safe_open(BASE / "output" / shown.split(":")[0], "pt") as saved:
        recipe = json.loads(saved.metadata()["lora_alloy"])
    assert [source["name"] for source in recipe["sources"]] == ["whole (transformer_2)", "wan_char"], recipe


@check
def recordings_are_of_both_models_or_of_one():
    """Calibrated merges and strengths by measuring, each with its own recording; the other is refused."""
    model, clip = fresh()
    low = low_of("sd15")
    listed = text().replace("<lora:learn_b:1:0:", "<lora:learn_b:1:0:on=high:")
    made = [run("LoraAlloyRecord", model=model, clip=clip, loras=text(), **SMALL)[0]]
    made.append(run("LoraAlloyRecord", model=low, clip=clip, loras=text().splitlines()[0], **SMALL)[0])
    recording = replace(made[0], low=made[1])
    given = {"model": model, "model_low": low, "loras": listed, "method": {"method": "calibrated"}}
    for more in ({}, {"auto_strength": True}):
        found, told = both(name="sd15", text="", **(given | {"clip": clip, "recording": recording} | more))
        for name, base, own, listing in (
            ("model", model, made[0], text()), ("model_low", low, made[1], text().splitlines()[0]),
        ):  # fmt: skip
            inputs = {**given, "model": base, "model_low": None, "loras": listing, "recording": own, **more}
            wanted = run("LoraAlloyLoader", clip=clip, **inputs)[0]
            assert_close(patched(found[name]), patched(wanted), name)
        assert ("keeps most" in told) == bool(more), told
    stack = run("LoraAlloyStack", loras=listed)[0]
    chosen = run("LoraAlloyMethod", method={"method": "calibrated"})[0]
    node = {"stack": stack, "method": chosen}
    one, _, _, other, _ = run("LoraAlloyMerge", **node, recording=recording)
    assert len(one.merged.loras) == 2 and [each.name for each in other.merged.loras] == ["learn_a"]
    with refused("the recording is of one model, and the list is for two"):
        run("LoraAlloyLoader", recording=made[0], **given)
    with refused("the recording is of two models: connect the low-noise one to model_low"):
        run("LoraAlloyLoader", recording=recording, **{**given, "model_low": None})


@check
def the_merge_node_makes_both():
    """With the models as the loader; without any, where rows say which is for which; hooks of both."""
    high, low, _ = pair()
    listed, on_high, on_low = rows()
    stack = run("LoraAlloyStack", loras=listed)[0]
    (method,) = run("LoraAlloyMethod", method=TIES)
    for models in ({"model": high, "model_low": low}, {}):
        one, report, hooks, other, hooks_low = run("LoraAlloyMerge", stack=stack, method=method, **models)
        for base, lora, own in ((high, one, on_high), (low, other, on_low)):
            applied = run("LoraAlloyApply", model=base, lora=lora, strength_model=1.0, strength_clip=1.0)
            assert_close(patched(applied[0]), alone(base, own), "applied", 1e-6)
        assert report.startswith("high-noise model: ties of 3 LoRAs, ") and "\nlow-noise model: " in report
        targets = [next(iter(each.hooks)).targets for each in (hooks, hooks_low)]
        assert all(bool(each) == bool(models) for each in targets)
    text = "<lora:wan_style_high_noise:1>\n<lora:wan_style_low_noise:1>\n<lora:wan_char:1{}>"
    stack = run("LoraAlloyStack", loras=text.format(""))[0]
    one, report, _, other, _ = run("LoraAlloyMerge", stack=stack)
    assert len(one.merged.loras) == 3 and other.merged is None and "high-noise expert" in report, report
    stack = run("LoraAlloyStack", loras=text.format(":on=both"))[0]
    one, report, _, other, _ = run("LoraAlloyMerge", stack=stack)
    assert len(one.merged.loras) == len(other.merged.loras) == 2 and "expert" not in report, report
    stack = run("LoraAlloyStack", loras="<lora:wan_char:1:on=low>")[0]
    one, report, _, other, _ = run("LoraAlloyMerge", stack=stack)
    assert one.merged is None and other.merged is not None and "high-noise model: no LoRA" in report, report


@check
def nodes_that_know_one_model_say_so():
    """Inspect compares what is merged with each other; other packs are told which rows they get without."""
    files()
    listed = "<lora:wan_style_high_noise:1>\n<lora:wan_style_low_noise:1>\n<lora:wan_char:1{}>"
    with torch.inference_mode():
        done = NODES["LoraAlloyStack"].execute(loras=listed.format(":on=low"))
    told = done.ui.as_dict()["text"][0]
    assert "lora_stack cannot carry which of two models a LoRA is for: other packs get wan_char" in told, told
    report = run("LoraAlloyInspect", stack=run("LoraAlloyStack", loras=listed.format(""))[0])[0]
    assert "wan_style_high_noise / wan_char" in report and "wan_style_low_noise / wan_char" in report
    assert "wan_style_high_noise / wan_style_low_noise" not in report and "are for two models" in report
    report = run("LoraAlloyInspect", stack=run("LoraAlloyStack", loras=listed.format(":on=low"))[0])[0]
    assert "wan_style_high_noise / wan_char" not in report and "wan_style_low_noise / wan_char" in report
    report = run("LoraAlloyInspect", stack=run("LoraAlloyStack", loras=listed.splitlines()[0])[0])[0]
    assert "two models" not in report, report
