"""Checks of control LoRAs for Flux, which widen the model's input layer and replace the weights of norms."""

import comfy.sd
import comfy.utils
import torch
from comfy_inside import (
    BASE,
    LORAS,
    OF_EACH_KIND,
    assert_close,
    chained,
    check,
    load_model,
    merge_ops,
    run,
    some_methods,
    text_of,
    weights_of,
    write_lora,
)
from safetensors.torch import load_file, save_file

INPUT = "diffusion_model.img_in.weight"  # (256, 64) in the tiny Flux
# Black Forest Labs' name of a module -> diffusers'
MODULES = {
    "img_in": ("x_embedder", 256, 128),
    "double_blocks.0.img_attn.proj": ("transformer_blocks.0.attn.to_out.0", 256, 256),
    "single_blocks.0.linear2": ("single_transformer_blocks.0.proj_out", 256, 1280),
}
NORMS = {
    "double_blocks.0.img_attn.norm.key_norm": "transformer_blocks.0.attn.norm_k",
    "double_blocks.0.txt_attn.norm.query_norm": "transformer_blocks.0.attn.norm_added_q",
    "single_blocks.0.norm.key_norm": "single_transformer_blocks.0.attn.norm_k",
}


def write_control(seed, spelling="bfl"):
    """A control LoRA in Black Forest Labs' own keys, or in diffusers'."""
    random, tensors = torch.Generator().manual_seed(seed), {}

    def noise(*shape):
        return torch.randn(shape, generator=random) * 0.05

    for name, (other, o, i) in MODULES.items():
        stem = name if spelling == "bfl" else f"transformer.{other}"
        parts = {"lora_A.weight": noise(4, i), "lora_B.weight": noise(o, 4), "lora_B.bias": noise(o)}
        tensors |= {f"{stem}.{role}": tensor for role, tensor in parts.items()}
    for name, other in NORMS.items():
        tensors[f"{name}.scale" if spelling == "bfl" else f"transformer.{other}.weight"] = noise(128) + 1
    save_file(tensors, LORAS / f"control_{spelling}.safetensors")
    return f"control_{spelling}.safetensors"


def loaded(rows, method=None, model=None, **inputs):
    """The weights that the loader patches, and its outputs."""
    chosen = method or {"method": "linear"}
    out = run(
        "LoraAlloyLoader", model=model or load_model("flux")[0], loras=text_of(rows), method=chosen, **inputs
    )
    return weights_of(out[0], None), out


def widened(delta, columns=128):
    return torch.nn.functional.pad(delta, (0, columns - delta.shape[1]))


@check
def a_control_lora_alone_is_stock():
    """Every weight that stock loads, at any strength; in diffusers' names the same weights."""
    model, _ = load_model("flux")
    for strength in (1.0, 0.6):
        row = (write_control(1), strength, strength)
        wanted = weights_of(*chained(model, None, [row]))
        assert len(wanted) == 9 and wanted[INPUT].shape == (256, 128), wanted.keys()
        assert_close(loaded([row])[0], wanted, "BFL's names")
        file = write_control(1, "diffusers")
        assert_close(loaded([(file, strength, strength)])[0], wanted, "diffusers' names", 1e-6)


@check
def a_control_lora_without_norms_in_diffusers_names():
    """Nothing in the file says what it is: an input twice as wide as the model's is a control LoRA's."""
    bfl = {k: v for k, v in load_file(LORAS / write_control(1)).items() if not k.endswith(".scale")}
    bfl["img_in.reshape_weight"] = torch.tensor([256, 128])
    bfl = {f"diffusion_model.{key.replace('.lora_B.bias', '.diff_b')}": value for key, value in bfl.items()}
    save_file(bfl, LORAS / "spelled_out.safetensors")
    other = load_file(LORAS / write_control(1, "diffusers"))
    save_file({k: v for k, v in other.items() if ".norm_" not in k}, LORAS / "no_norms.safetensors")
    wanted = weights_of(*chained(load_model("flux")[0], None, [("spelled_out.safetensors", 0.8, 0.8)]))
    assert wanted[INPUT].shape == (256, 128)
    assert_close(loaded([("no_norms.safetensors", 0.8, 0.8)])[0], wanted, "without norms", 1e-6)


@check
def a_control_lora_beside_plain_ones():
    """The narrow change of the input is in the first 64 columns, whatever the order and the method."""
    model, _ = load_model("flux")
    plain = write_lora("beside_control", "flux", 4, 8, 2)
    base = widened(model.model.state_dict()[INPUT].float())
    for spelling in ("bfl", "diffusers"):
        control = write_control(1, spelling)
        both = [merge_ops.load(LORAS / name) for name in (control, plain)]
        wide, narrow = (next(lora.layers[n] for n in lora.layers if n.endswith(("img_in", "x_embedder")))
                        for lora in both)  # fmt: skip
        wanted = base + 0.8 * wide.delta() - 0.5 * widened(narrow.delta())
        rows = [(control, 0.8, 0.8), (plain, -0.5, -0.5)]
        for each in (rows, rows[::-1]):
            ours, _ = loaded(each)
            assert_close({INPUT: ours[INPUT].float()}, {INPUT: wanted}, spelling, 2e-3)
        stock = weights_of(*chained(model, None, rows[::-1]))  # plain first: stock cannot do the other order
        assert_close(ours, stock, f"{spelling} chain", 2e-3) if spelling == "bfl" else None
        for method, density in some_methods(OF_EACH_KIND):
            chosen = {"method": method, **density}
            ours, out = loaded(rows, chosen, seed=5)
            delta = out[2].merged.delta(
                next(n for n in out[2].merged.layers if n.endswith(("img_in", "x_embedder")))
            )
            assert delta.shape == (256, 128) and float(delta[:, 64:].abs().max()) > 0, method
            assert_close({INPUT: ours[INPUT].float()}, {INPUT: base + delta}, method, 2e-3)
        cut, _ = loaded(rows, {"method": "ties", "density": 0.5}, rank=4)
        assert cut[INPUT].shape == (256, 128)


def saved_for_stock(lora, form):
    """The weights that stock Load LoRA patches with what Save LoRA has written."""
    path = run("LoraAlloySave", lora=lora, filename_prefix="loras/control", format=form, dtype="float32")[0]
    saved = comfy.utils.load_torch_file(str(BASE / "output" / path), safe_load=True)
    return weights_of(*comfy.sd.load_lora_for_models(load_model("flux")[0], None, saved, 1.0, 1.0))


@check
def a_control_lora_through_every_node():
    """Merge and Apply give what the loader gives, and what is saved is loaded by stock so, in each format."""
    model, _ = load_model("flux")
    plain = write_lora("beside_control", "flux", 4, 8, 2)
    for spelling in ("bfl", "diffusers"):
        rows = [(write_control(1, spelling), 1.0, 1.0), (plain, 0.5, 0.5)]
        wanted, out = loaded(rows)
        stack = run("LoraAlloyStack", loras=text_of(rows))[0]
        lora = run("LoraAlloyMerge", stack=stack, model=model)[0]
        applied = run("LoraAlloyApply", lora=lora, strength_model=1.0, strength_clip=1.0, model=model)[0]
        assert_close(weights_of(applied, None), wanted, "applied", 1e-6)
        assert_close(saved_for_stock(out[2], "auto"), wanted, spelling, 2e-3)
        alone, out = loaded(rows[:1])
        assert_close(saved_for_stock(out[2], "kohya"), alone, spelling, 2e-3)
        if spelling == "bfl":
            assert_close(saved_for_stock(out[2], "diffusers"), alone, "bfl", 2e-3)


@check
def a_plain_lora_after_stocks_control_lora():
    """MODEL that a stock node has widened: our patch of the narrow weight goes into its first columns."""
    model, _ = load_model("flux")
    control, plain = (write_control(1), 1.0, 1.0), (write_lora("beside_control", "flux", 4, 8, 2), 0.5, 0.5)
    wanted, _ = loaded([control, plain])
    before = chained(model, None, [control])[0]
    assert_close(loaded([plain], model=before)[0], wanted, "after stock", 2e-3)
    other = [plain, (write_lora("second", "flux", 2, 2, 3), 0.4, 0.4)]
    for method, density in some_methods(("ties", "even")):
        ours, _ = loaded(other, {"method": method, **density}, model=before)
        assert ours[INPUT].shape == (256, 128), method
        assert torch.equal(ours[INPUT][:, 64:], wanted[INPUT][:, 64:]), method


@check
def a_control_lora_and_steps():
    """Hooks cannot widen a weight; where a node before has widened it, a plain LoRA goes into its part."""
    model, _ = load_model("flux")
    control, plain = (write_control(1), 1.0, 1.0), (write_lora("beside_control", "flux", 4, 8, 2), 0.5, 0.5)
    try:
        loaded(
            [control], model=model, stack=run("LoraAlloyStack", loras=f"<lora:{plain[0]}:1:steps=0-0.5>")[0]
        )
    except merge_ops.MergeError as error:
        assert "is widened by a control LoRA" in str(error)
    else:
        raise AssertionError("not refused")
    before = chained(model, None, [control])[0]
    wanted = loaded([plain], model=before)[0]
    ours, *_, hooks, _, _, _ = run("LoraAlloyLoader", model=before, loras=f"<lora:{plain[0]}:0.5:steps=0-1>")
    with torch.inference_mode():
        ours.patch_model(ours.load_device)
        for hook in hooks.hooks:
            hook.initialize_timesteps(ours.model)
            assert hook.hook_keyframe.prepare_current_keyframe(torch.tensor(0.5), {})
        ours.patch_hooks(hooks)
        found = {key: weight.clone() for key, weight in ours.model.state_dict().items() if key in wanted}
        ours.unpatch_hooks()
        ours.unpatch_model(ours.offload_device)
    # ComfyUI loads patches of modules' weights; bare parameters it leaves to nobody
    assert found[INPUT].shape == (256, 128)
    assert_close({INPUT: found[INPUT]}, {INPUT: wanted[INPUT]}, "steps after stock", 2e-3)
