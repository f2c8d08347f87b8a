"""Checks of merges by bypass: against patched weights, and against ComfyUI's own bypass loaders."""

from importlib import import_module

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from bypass_inside import READERS, assert_near, count_changed, input_of, outputs_of, prediction_of
from checks_based import dora
from checks_kinds import write_kinds
from comfy_inside import (
    LORAS,
    MODELS,
    NODES,
    check,
    load_model,
    merge_ops,
    run,
    some_methods,
    text_of,
    three_loras,
    write_lora,
)
from safetensors.torch import save_file
from steps_inside import conditions, differ, refused, sample, timed, unchanged

LINEAR = {"method": "linear"}
WAYS = [("linear", {}), *some_methods(("ties", "dare_ties", "even", "knots_ties"))]


def loaded(model, clip, rows, method=None, **more):
    """MODEL, CLIP, and what the node said."""
    given = {"model": model, "clip": clip, "loras": text_of(rows), "method": method or LINEAR, **more}
    with torch.inference_mode():
        out = NODES["LoraAlloyLoader"].execute(**given)
    return *out.result[:2], out.ui.text


def rounding_of(part):
    """How much outputs may differ: patched weights are rounded to the dtype of the model."""
    dtypes = {weight.dtype for weight in getattr(part, "patcher", part).model.parameters()}
    return 2e-3 if torch.float16 in dtypes else 2e-5


def near(a, b, what):
    """The same samples, to rounding of what the steps in float32 add up to."""
    off = (a["samples"] - b["samples"]).abs().max() / b["samples"].abs().max()
    assert off < 1e-4, (what, off)


for _name in MODELS:

    @check
    def bypass_is_the_patched_model(name=_name):
        """Every layer gives the same, slices of fused weights and convolutions too; no weight changes."""
        model, clip = load_model(name)
        rows = three_loras(name)
        for method, density in WAYS:
            chosen = {"method": method, **density}
            patched = loaded(model, clip, rows, chosen)
            ours = loaded(model, clip, rows, chosen, patching="bypass")
            for part, usual, kept in ((ours[0], patched[0], model), (ours[1], patched[1], clip)):
                if part is None:
                    continue
                got, wanted = outputs_of(part), outputs_of(usual)
                assert_near(got, wanted, (name, method), rounding_of(kept))
                assert count_changed(got, outputs_of(kept)) > 10, (name, method)
                patches = getattr(part, "patcher", part).patches
                assert patches.keys().isdisjoint(got), list(patches)[:3]
            assert "3 LoRAs by bypass:" in ours[2], ours[2]
            assert ("full rank, and is made anew" in ours[2]) is (method in ("ties", "dare_ties")), ours[2]


for _name in READERS:

    @check
    def the_whole_model_predicts_the_same(name=_name):
        """One patch and bypass of three LoRAs, against the patches of a chain."""
        model, _ = load_model(name)
        rows = three_loras(name)
        for method in (LINEAR, {"method": "ties", "density": 0.4}):
            wanted = prediction_of(loaded(model, None, rows, method)[0], name)
            for way in ("one patch", "bypass"):
                ours = prediction_of(loaded(model, None, rows, method, patching=way)[0], name)
                assert_near(ours, wanted, (name, method, way), 1e-4)
            off = wanted["prediction"] - prediction_of(model, name)["prediction"]
            assert off.abs().max() > 1e-2 * wanted["prediction"].abs().max(), (name, method)


@check
def layers_agree_in_half_precision():
    """A merge of three in fp16, bf16 and fp8 gives what the patched model does, within its rounding."""
    rows = three_loras("flux")
    file = comfy.utils.load_torch_file
    path = folder_paths.get_full_path_or_raise("diffusion_models", "tiny_flux.safetensors")
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        model = comfy.sd.load_diffusion_model_state_dict(file(path), {"dtype": dtype})
        patched, ours = (loaded(model, None, rows, patching=way)[0] for way in ("auto", "bypass"))
        computes = torch.float32 if dtype == torch.float8_e4m3fn else dtype
        keys = [key for key in model.model.state_dict() if key.endswith("weight") and "blocks" in key]
        exact = outputs_of(loaded(load_model("flux")[0], None, rows)[0], keys)
        allowed = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float8_e4m3fn: 2e-1}[dtype]
        assert_near(outputs_of(ours, keys, computes), exact, dtype, allowed)
        assert_near(outputs_of(patched, keys, computes), exact, dtype, allowed)


@check
def other_kinds_are_bypassed_or_named():
    """LoHa, LoKr and differences beside a plain LoRA come out as patched; what stays a patch is named."""
    for name in ("sd15", "flux"):
        model, clip = load_model(name)
        rows = [(write_lora("plain", name, 4, 2, 1), 0.7, 0.4), (write_kinds("kinds", name, 2), -0.6, 0.9)]
        for method in (LINEAR, {"method": "ties", "density": 0.4}):
            wanted = loaded(model, clip, rows, method)
            *ours, said = loaded(model, clip, rows, method, patching="bypass")
            for got, usual in zip(ours, wanted, strict=False):
                if got is not None:
                    assert_near(outputs_of(got), outputs_of(usual), (name, method), rounding_of(got))
            if clip is not None:
                assert "CLIP: bypass cannot hold these, which are patched as usual" in said, said
                assert "embeddings, such as" in said, said


@check
def what_depends_on_the_weight_stays_a_patch():
    """DoRA and biases: the layer is patched with all that is on it, and the node says so."""
    model, _ = load_model("sd15")
    rows = three_loras("sd15")
    generator = torch.Generator().manual_seed(4)

    def made(*shape):
        return torch.rand(shape, generator=generator)

    key = "diffusion_model.middle_block.1.proj_in.weight"
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    shape = tuple(model.model.state_dict()[key].shape)
    tensors = {f"{stem}.{role}": tensor for role, tensor in dora(shape, made).items()}
    tensors["lora_unet_mid_block_resnets_0_conv1.diff_b"] = made(
        model.model.state_dict()["diffusion_model.middle_block.0.in_layers.2.bias"].shape[0]
    )
    save_file(tensors, LORAS / "dora_bias.safetensors")
    listed = [*rows, ("dora_bias.safetensors", 0.5, 0)]
    ours = loaded(model, None, listed, patching="bypass")
    assert "1 DoRA and other kinds that depend on the weight" in ours[2], ours[2]
    assert "1 biases, norms and other vectors" in ours[2], ours[2]
    assert len(ours[0].patches) == 2 and key in ours[0].patches, list(ours[0].patches)
    assert_near(outputs_of(ours[0]), outputs_of(loaded(model, None, listed)[0]), "DoRA", 2e-5)


@check
def apply_takes_the_same_choice():
    """Apply Merged LoRA, with a strength for each part."""
    model, clip = load_model("sd15")
    stack = run("LoraAlloyStack", loras=text_of(three_loras("sd15")))[0]
    lora = run("LoraAlloyMerge", stack=stack)[0]
    given = {"lora": lora, "model": model, "clip": clip, "strength_model": 0.6, "strength_clip": -1.2}
    usual = run("LoraAlloyApply", **given)
    ours = run("LoraAlloyApply", **given, patching="bypass")
    for got, wanted in zip(ours, usual, strict=True):
        assert_near(outputs_of(got), outputs_of(wanted), "Apply", rounding_of(got))
    with refused(merge_ops.MergeError, "did you mean 'bypass'"):
        run("LoraAlloyApply", **given, patching="bypas")


@check
def factors_follow_the_layer():
    """Text encoders may compute on another device than the one to which ComfyUI moves the factors."""
    model, clip = load_model("sd15")
    ours = loaded(model, clip, three_loras("sd15"), patching="bypass")[1].patcher
    key = next(key for key in ours.model.state_dict() if key.endswith("fc1.weight"))
    wanted = outputs_of(ours, [key])
    module = ours.model.get_submodule(key.removesuffix(".weight"))
    place = [path for path, _ in ours.model.named_modules()].index(key.removesuffix(".weight"))
    real = comfy.model_management.get_torch_device
    comfy.model_management.get_torch_device = lambda: torch.device("meta")
    try:
        ours.inject_model()
    finally:
        comfy.model_management.get_torch_device = real
    with torch.inference_mode():
        got = module(input_of(module, place))
        assert torch.equal(got, wanted[key])
    ours.eject_model()


@check
def merges_that_change_cannot_be_bypassed():
    """With steps= the node refuses, or says that one patch has no effect; a MODEL with hooks composes."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    text = timed(rows[:1], "0-0.5")
    with refused(merge_ops.MergeError, "patching bypass cannot change over the sampling"):
        run("LoraAlloyLoader", model=model, loras=text, method=LINEAR, patching="bypass")
    with torch.inference_mode():
        said = NODES["LoraAlloyLoader"].execute(model=model, loras=text, method=LINEAR, patching="one patch")
    assert "patching one patch has no effect" in said.ui.text
    plain = conditions(clip, "a fox", "")
    carrying = said.result[0]
    ours, usual = (loaded(carrying, None, rows[1:], patching=way)[0] for way in ("bypass", "auto"))
    with unchanged(model):
        wanted = sample(usual, *plain)
        near(sample(ours, *plain), wanted, "hooks and bypass")
        differ(sample(carrying, *plain), wanted, "hooks alone")


@check
def nodes_that_read_weights_refuse_a_bypass():
    """Extract and Measure would find nothing; Merge Loaded LoRAs names it and leaves it."""
    model, _ = load_model("sd15")
    ours = loaded(model, None, three_loras("sd15"), patching="bypass")[0]
    with refused(merge_ops.MergeError, "LoRAs are on this model by bypass"):
        run("LoraAlloyExtract", tuned=ours, base=model)
    with refused(merge_ops.MergeError, "where measuring it needs them"):
        import_module("alloy_pack.nodes.model.host_parts").adopted(model, ours, "MODEL")
    merged = run("LoraAlloyMergeLoaded", model=ours, method=LINEAR)
    assert any("came by a bypass loader" in str(each) for each in merged), merged
