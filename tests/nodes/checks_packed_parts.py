"""Checks of packed weights elsewhere: in text encoders, under other kinds of adapters, in other nodes."""

from importlib import import_module

import comfy.model_patcher
import torch
from comfy_inside import LORAS, check, load_model, load_sd15, run
from packed_weights import LAYOUTS, PatcherOfPack, put_packed, refusal
from safetensors.torch import save_file

UNET = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
TEXT = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
STEM_TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
SOME = ("has a state", "bytes")  # of the layouts
EVERY = {"strength_model": 1.0, "strength_clip": 1.0}


def write(name, stem, rows, columns, **more):
    """A LoRA on one layer, with more tensors of that layer, or with them alone."""
    factors = {"lora_up.weight": torch.ones(rows, 2) * 0.1, "lora_down.weight": torch.ones(2, columns) * 0.1}
    parts = {key.replace("__", "."): value for key, value in more.items()}
    tensors = parts if parts.keys() - {"dora_scale"} else factors | parts
    save_file({f"{stem}.{key}": value for key, value in tensors.items()}, LORAS / f"{name}.safetensors")
    return f"<lora:{name}:1>"


def packed(layout, patcher=comfy.model_patcher.ModelPatcher):
    """MODEL and CLIP with one packed weight each."""
    model, clip = load_sd15()
    model = put_packed(model, *LAYOUTS[layout], [UNET], patcher)
    clip.patcher = put_packed(clip.patcher, *LAYOUTS[layout], [TEXT], patcher)
    return model, clip


@check
def packed_text_encoders_are_refused():
    """Like the diffusion model, by the name of their layer; a LoRA that does not touch it is merged."""
    rows, columns = load_model("sd15")[1].patcher.model.get_parameter(TEXT).shape
    for layout in SOME:
        model, clip = packed(layout)
        text = write("packed_te", STEM_TEXT, rows, columns)
        node = {"model": model, "clip": clip, "method": {"method": "linear"}}
        said = refusal(lambda n=node, t=text: run("LoraAlloyLoader", loras=t, **n))
        assert said.startswith("packed_te ") and TEXT.removesuffix(".weight") in said, said
        free = write("free_te", STEM_TEXT.replace("layers_0", "layers_1"), rows, columns)
        ours = run("LoraAlloyLoader", loras=free, **node)
        assert list(ours[1].patcher.patches) == [TEXT.replace("layers.0", "layers.1")]


@check
def other_kinds_on_packed_weights_are_refused():
    """What needs the base weight, whole weights, differences, LoHa and LoKr: alone and in every node."""
    rows, columns = load_model("sd15")[0].model.get_parameter(UNET).shape
    kinds = {
        "dora": {"dora_scale": torch.ones(rows, 1)},
        "diff": {"diff": torch.ones(rows, columns)},
        "set": {"set_weight": torch.ones(rows, columns)},
        "loha": {f"hada_w{i}_{half}": torch.ones(*(rows, 2) if half == "a" else (2, columns))
                 for i in (1, 2) for half in "ab"},
        "lokr": {"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(rows // 4, columns // 4)},
        "ia3": {"weight": torch.ones(rows), "on_input": torch.tensor(False)},
    }  # fmt: skip
    for layout in SOME:
        model, clip = packed(layout)
        for kind, tensors in kinds.items():
            text = write(f"packed_{kind}", STEM, rows, columns, **tensors)
            said = refusal(lambda m=model, c=clip, t=text: run(
                "LoraAlloyLoader", model=m, clip=c, loras=t, method={"method": "linear"}))  # fmt: skip
            assert said.startswith(f"packed_{kind}") and "packed" in said, (layout, said)


@check
def recording_and_applying_on_packed_weights_is_refused():
    """Before anything is sampled."""
    rows, columns = load_model("sd15")[0].model.get_parameter(UNET).shape
    text = write("packed_unet", STEM, rows, columns).replace(":1>", ":1:prompt=a cat>")
    lora = run("LoraAlloyMerge", stack=run("LoraAlloyStack", loras=text)[0])[0]
    for layout in SOME:
        model, clip = packed(layout)
        for node, given in (
            ("LoraAlloyRecord", {"loras": text}),
            ("LoraAlloyApply", {"lora": lora, **EVERY}),
            ("LoraAlloyMerge", {"stack": run("LoraAlloyStack", loras=text)[0]}),
        ):
            said = refusal(lambda m=model, c=clip, n=node, g=given: run(n, model=m, clip=c, **g))
            assert UNET.removesuffix(".weight") in said, (layout, node, said)


@check
def patches_refuse_packed_weights_themselves():
    """Whoever calls them, for every method: another count of entries never ends in a line of the log only."""
    rows, columns = load_model("sd15")[0].model.get_parameter(UNET).shape
    text = write("late", STEM, rows, columns)
    model = load_model("sd15")[0]
    registry = import_module("alloy_pack.merge_ops").METHODS
    for name, method in registry.items():
        if method.needs_recording:
            continue
        ours = run("LoraAlloyLoader", model=model, loras=text, method={"method": name})[0]
        ((_, adapter, *_),) = ours.patches[UNET]
        for weight in (torch.zeros(rows, columns // 8), torch.zeros(rows * columns // 2, 1)):
            said = refusal(
                lambda a=adapter, w=weight: a.calculate_weight(w, UNET, 1.0, 1.0, None, lambda x: x)
            )
            assert said.startswith(UNET) and str(weight.numel()) in said, said


@check
def packs_that_unpack_serve_text_encoders():
    """With a patcher of their own, both parts are patched."""
    model, clip = packed("states its shape", PatcherOfPack)
    rows, columns = load_model("sd15")[1].patcher.model.get_parameter(TEXT).shape
    text = write("packed_te", STEM_TEXT, rows, columns)
    ours = run("LoraAlloyLoader", model=model, clip=clip, loras=text, method={"method": "ties"})
    assert list(ours[1].patcher.patches) == [TEXT]
