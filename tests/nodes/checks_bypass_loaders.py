"""Checks of bypass beside ComfyUI's own bypass loaders: the same for one LoRA, and what they cannot do."""

import comfy_extras.nodes_lora_debug as core_loaders
import comfy_extras.nodes_train as core_train
import torch
from bypass_inside import assert_near, outputs_of
from checks_bypass import loaded, near
from comfy_inside import LORAS, check, load_model, run, text_of, three_loras
from safetensors.torch import load_file, save_file
from steps_inside import conditions, differ, sample, unchanged


def without_embeddings(name):
    """The file without the layers that ComfyUI's own bypass fails on."""
    tensors = load_file(LORAS / name)
    kept = {key: tensor for key, tensor in tensors.items() if "embedding" not in key}
    assert len(kept) < len(tensors)
    save_file(kept, LORAS / f"layers_{name}")
    return f"layers_{name}"


@check
def bypass_of_one_lora_is_cores():
    """To the last bit, on model and text encoder, and through the sampler; chained, ours keeps the first."""
    model, clip = load_model("sd15")
    one, other = (without_embeddings(name) for name, *_ in three_loras("sd15")[:2])
    theirs = core_loaders.LoraLoaderBypass().load_lora(model, clip, one, 0.7, 0.4)
    ours = loaded(model, clip, [(one, 0.7, 0.4)], patching="bypass")
    for got, wanted in zip(ours[:2], theirs, strict=True):
        assert_near(outputs_of(got), outputs_of(wanted), "one LoRA", 0)
    plain = conditions(clip, "a fox", "")
    hot, cold = (conditions(part[1], "a fox", "") for part in (ours, theirs))
    assert torch.equal(hot[0][0][0], cold[0][0][0]) and not torch.equal(hot[0][0][0], plain[0][0][0])
    with unchanged(model):
        expected = sample(theirs[0], *plain)
        assert torch.equal(sample(ours[0], *plain)["samples"], expected["samples"])
        differ(sample(model, *plain), expected, "without")
        behind = loaded(theirs[0], None, [(other, -0.5, 0)], patching="bypass")[0]
        both = loaded(model, None, [(one, 0.7, 0), (other, -0.5, 0)], patching="bypass")[0]
        patched = loaded(model, None, [(one, 0.7, 0), (other, -0.5, 0)])[0]
        wanted = sample(patched, *plain)
        differ(wanted, expected, "the second")
        for chain in (behind, both, ours[0], behind):  # each is loaded after the others, and comes off again
            near(sample(chain, *plain), expected if chain is ours[0] else wanted, chain is ours[0])
        assert torch.equal(sample(model, *plain)["samples"], sample(load_model("sd15")[0], *plain)["samples"])


SLICED = {"sd15": set(), "flux": {"qkv", "linear1", "1"}}  # layers whose weights LoRAs change by parts


@check
def cores_nodes_take_the_merge():
    """Load LoRA Model takes our LORA_MODEL, with bypass and without; its bypass knows no slices."""
    for name in ("sd15", "flux"):
        model, _ = load_model(name)
        rows = three_loras(name)
        stack = run("LoraAlloyStack", loras=text_of(rows))[0]
        lora = run("LoraAlloyMerge", stack=stack, model=model)[0]
        wanted = outputs_of(loaded(model, None, rows)[0])
        ours = outputs_of(loaded(model, None, rows, patching="bypass")[0])
        with torch.inference_mode():
            patched, bypassed = (
                core_train.LoraModelLoader.execute(model, lora, 1.0, bypass)[0] for bypass in (False, True)
            )
        assert_near(outputs_of(patched), wanted, name)
        assert_near(ours, wanted, name)
        base, got = outputs_of(model), outputs_of(bypassed)
        lost = {
            key for key in got if torch.equal(got[key], base[key]) and not torch.equal(wanted[key], base[key])
        }
        assert {key.split(".")[-2] for key in lost} == SLICED[name], lost
        kept = [key for key in got if key not in lost]
        assert_near({k: got[k] for k in kept}, {k: wanted[k] for k in kept}, name)
