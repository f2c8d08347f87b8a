"""Checks of what is left on MODEL and CLIP beside patches: the metadata that nodes of ComfyUI read there."""

import json

import comfy.sd
import comfy.utils
import comfy_extras.nodes_lt as ltx
import torch
from comfy_inside import BASE, LORAS, NODES, check, load_model, run, write_lora
from safetensors.torch import load_file, save_file

FACTOR = "reference_downscale_factor"
METADATA = {
    "ic": {FACTOR: "2", "ss_network_dim": "4"},
    "ic_trained": {f"ss_{FACTOR}": "3"},
    "style": {"format": "pt", "ss_tag_frequency": json.dumps({"a": {"b": 1}})},
    "silent": None,
}


def write(model="sd15"):
    """A LoRA file with each of the metadata."""
    for seed, (name, metadata) in enumerate(METADATA.items()):
        tensors = load_file(LORAS / write_lora(name, model, 2, 2, seed, every=9))
        save_file(tensors, LORAS / f"{name}.safetensors", metadata)


def chain(model, clip, rows):
    """Stock Load LoRA nodes, one after the other."""
    for name, strength, strength_clip in rows:
        if strength or strength_clip:
            path = str(LORAS / f"{name}.safetensors")
            lora, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
            model, clip = comfy.sd.load_lora_for_models(model, clip, lora, strength, strength_clip, metadata)
    return model, clip


def found(model, clip):
    """What is attached to both, and what Get IC-LoRA Parameters makes of it."""
    factor = ltx.GetICLoRAParameters.execute(model).result[0][FACTOR]
    return model.get_attachment("lora_metadata"), clip.patcher.get_attachment("lora_metadata"), factor


def text_on(node, **inputs):
    """The text that a node shows."""
    with torch.inference_mode():
        return NODES[node].execute(**inputs).ui.as_dict()["text"][0]


def lines(rows):
    return "\n".join(f"<lora:{name}:{s}:{c}>" for name, s, c in rows)


CHAINS = [
    [("ic", 1, 1)],
    [("ic_trained", 1, 0)],
    [("silent", 1, 1)],
    [("ic", 0.5, 0.5), ("ic_trained", 0.5, 0)],
    [("ic_trained", 1, 1), ("ic", 1, 1)],
    [("ic", 1, 1), ("silent", 1, 1)],
    [("style", 1, 1), ("ic", 0, 0.3)],
    [("ic", 1, 1), ("style", 0, 0)],
    [("ic", 1, 1), ("style", 1, 1)],
]


@check
def metadata_is_attached_as_by_the_chain():
    """By each node that patches, for every method, whatever was attached before."""
    write()
    plain, clip = load_model("sd15")
    before = chain(plain, clip, [("ic_trained", 1, 1)])
    for model, encoder in ((plain, clip), before):
        for rows in CHAINS:
            wanted = found(*chain(model, encoder, rows))
            for method in ("linear", "ties"):
                ours = run("LoraAlloyLoader", model=model, clip=encoder, loras=lines(rows),
                           method={"method": method})  # fmt: skip
                assert found(*ours[:2]) == wanted, (rows, method)
                both = {"strength_model": 0.5, "strength_clip": 0.5}
                applied = run("LoraAlloyApply", model=model, clip=encoder, lora=ours[2], **both)
                assert found(*applied) == wanted, (rows, method, "Apply")
            stack = run("LoraAlloyStack", loras=lines(rows))[0]
            merged = run("LoraAlloyMerge", stack=stack)[0]
            applied = run("LoraAlloyApply", model=model, clip=encoder, lora=merged, strength_model=0.0,
                          strength_clip=1.0)  # fmt: skip
            assert found(*applied) == wanted, (rows, "Merge, Apply")
    assert plain.get_attachment("lora_metadata") is None
    nothing = run("LoraAlloyApply", model=plain, lora=merged, strength_model=0.0, strength_clip=0.0)[0]
    assert nothing is plain


@check
def metadata_of_a_saved_merge():
    """Load LoRA attaches what the sources agree on; the node says where they do not."""
    write()
    model, clip = load_model("sd15")
    for rows, wanted in (
        ([("ic", 1, 1), ("style", 1, 1)], 2),
        ([("ic", 1, 1)], 2),
        ([("ic", 1, 1), ("ic_trained", 1, 1)], 1),
    ):
        merged = run("LoraAlloyMerge", stack=run("LoraAlloyStack", loras=lines(rows))[0])[0]
        shown = text_on("LoraAlloySave", lora=merged, filename_prefix="loras/ic_saved")
        assert ("disagree on reference_downscale_factor" in shown) == (wanted == 1), shown
        path = str(BASE / "output" / shown.split(":")[0])
        lora, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
        stock = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0, metadata)
        assert found(*stock)[2] == wanted, (rows, found(*stock))
        again = run("LoraAlloyStack", loras="", lora={"lora0": merged})[0]
        node = {"model": model, "clip": clip, "method": {"method": "linear"}}
        ours = run("LoraAlloyLoader", loras="", stack=again, **node)
        assert found(*ours[:2])[2] == wanted, rows


@check
def metadata_of_a_model_without_clip():
    """As by Load LoRA (Model): a LoRA at strength 0 is passed over, whatever its strength for CLIP."""
    write()
    model, _ = load_model("sd15")
    for last, wanted in ((0, 2), (0.5, 3)):
        rows = [("ic", 1, 1), ("ic_trained", last, 1)]
        ours = run("LoraAlloyLoader", model=model, loras=lines(rows), method={"method": "linear"})[0]
        assert ltx.GetICLoRAParameters.execute(ours).result[0][FACTOR] == wanted, last


@check
def parameters_that_are_hidden_are_named():
    """A later LoRA's metadata replaces those of an earlier one, as in the chain: the node says so."""
    write()
    model, clip = load_model("sd15")
    node = {"model": model, "clip": clip, "method": {"method": "linear"}}
    shown = text_on("LoraAlloyLoader", loras=lines([("ic", 1, 1), ("style", 1, 1)]), **node)
    assert "ic has reference_downscale_factor 2" in shown and "put ic last" in shown, shown
    for quiet in ([("style", 1, 1), ("ic", 1, 1)], [("ic", 1, 1), ("silent", 1, 1)]):
        shown = text_on("LoraAlloyLoader", loras=lines(quiet), **node)
        assert FACTOR not in shown, shown
