"""Checks of LoRAs for fewer steps in the nodes: behind the merge, as ComfyUI's loader puts them."""

import shutil

from comfy_inside import (
    LORAS,
    assert_close,
    chained,
    check,
    load_model,
    run,
    text_of,
    three_loras,
    weights_of,
)
from loaded_inside import merged
from safetensors.torch import load_file, save_file

TIES = {"method": "ties", "density": 0.4}


def with_fast(model_name):
    """Two LoRAs, and a third one whose name says that it is for fewer steps."""
    one, other, third = three_loras(model_name)
    name = f"{model_name}_lcm.safetensors"
    shutil.copy(LORAS / third[0], LORAS / name)
    return one, (name, 0.8, 0.8), other


@check
def speed_loras_are_added_as_by_load_lora():
    """Bit for bit, on the model and the text encoder; the node says so, and can be told otherwise."""
    for model_name in ("sd15", "flux"):
        model, clip = load_model(model_name)
        one, fast, other = rows = with_fast(model_name)
        loaded = run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method=TIES)
        alone = run("LoraAlloyLoader", model=model, clip=clip, loras=text_of([one, other]), method=TIES)
        wanted = chained(*alone[:2], [fast])
        assert_close(weights_of(*loaded[:2]), weights_of(*wanted), model_name)
        stack = run("LoraAlloyStack", loras=text_of(rows))[0]
        method = run("LoraAlloyMethod", method=TIES)[0]
        lora, report, *_ = run("LoraAlloyMerge", stack=stack, method=method)
        said = f"{model_name}_lcm is a step-distillation LoRA: it is added after the merge"
        assert said in report, report
        applied = run("LoraAlloyApply", model=model, clip=clip, lora=lora, strength_model=1, strength_clip=1)
        assert_close(weights_of(*applied[:2]), weights_of(*wanted), model_name, 1e-6)
        voted = run(
            "LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method=TIES, speed_loras="merged"
        )
        tensors = load_file(LORAS / fast[0])
        save_file(tensors, LORAS / f"{model_name}_plain.safetensors")
        named = [one, (f"{model_name}_plain.safetensors", *fast[1:]), other]
        plain = run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(named), method=TIES)
        assert_close(weights_of(*voted[:2]), weights_of(*plain[:2]), model_name, 1e-6)


@check
def speed_loras_on_a_model_are_merged_apart():
    """Where another loader put them."""
    model, clip = load_model("sd15")
    rows = with_fast("sd15")
    chain = chained(model, clip, rows)
    new_model, new_clip, *_, report = merged(*chain, rows, TIES)
    wanted = run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method=TIES)
    assert_close(weights_of(new_model, new_clip), weights_of(*wanted[:2]), "loaded", 1e-6)
    assert "it is added after the merge" in report, report
