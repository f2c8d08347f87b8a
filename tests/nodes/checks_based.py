"""Checks of adapters that depend on the base weight, and of biases, norms, set and widened weights."""

import math
from importlib import import_module

import torch
from comfy_inside import (
    BASE,
    LORAS,
    NODES,
    assert_close,
    chained,
    check,
    key_names,
    load_model,
    merge_ops,
    run,
    some_methods,
    text_of,
    weights_of,
    write_lora,
)
from safetensors.torch import load_file, save_file

SIZE = 0.1


def lora(shape, made):
    return {
        "lora_up.weight": made(shape[0], 4, *(1 for _ in shape[2:])),
        "lora_down.weight": made(4, *shape[1:]),
    }


def dora(shape, made):
    ones = (1,) * (len(shape) - 1)
    return lora(shape, made) | {"dora_scale": 1 + made(shape[0], *ones)}


def dora_by_inputs(shape, made):
    return lora(shape, made) | {"dora_scale": 1 + made(1, shape[1], *(1 for _ in shape[2:]))}


def glora(shape, made):
    a1, a2, b1 = made(shape[1], 3), made(3, shape[1]), made(shape[0], 3)
    return {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": made(3, *shape[1:])}


def oft(shape, made):
    size = math.gcd(shape[0], 8)
    return {"oft_blocks": made(shape[0] // size, size, size)}


def boft(shape, made):
    return {
        "oft_blocks": made(1, shape[0] // 2, 2, 2),
        "rescale": 1 + made(shape[0], *(1 for _ in shape[1:])),
    }


KINDS = (dora, dora_by_inputs, glora, oft, boft)


def write_based(name, model_name, seed, kinds=KINDS):
    """A file with one adapter on every weight, of the kinds in turn."""
    random, tensors = torch.Generator().manual_seed(seed), {}

    def made(*shape):
        return torch.randn(shape, generator=random) * SIZE

    # not: slices that overlap others; rows that ComfyUI swaps, since it does not swap magnitudes with them;
    # and the projection of the tiny CLIP, which is not loaded and holds whatever was in memory
    targets = key_names(*load_model(model_name)).items()
    named = sorted(pair for target, pair in targets if isinstance(target, str) or len(target) == 2)
    named = [(stem, shape) for stem, shape in named if "text_proj" not in stem and "linear1_qkv" not in stem]
    for i, (stem, shape) in enumerate(named):
        kind = kinds[i % len(kinds)]
        tensors |= {f"{stem}.{role}": tensor for role, tensor in kind(shape, made).items()}
        tensors[f"{stem}.alpha"] = torch.tensor(0.0 if kind in (oft, boft) else 2.0)
    save_file(tensors, LORAS / f"{name}.safetensors")
    return f"{name}.safetensors"


@check
def based_kinds_are_load_lora():
    """One such LoRA at strength 1 is Load LoRA; at other strengths too, but for OFT, which stock squares."""
    for model_name in ("sd15", "flux", "sd3"):
        for strength, kinds in ((1.0, KINDS), (-0.6, (dora, dora_by_inputs, glora))):
            model, clip = load_model(model_name)
            rows = [(write_based("based", model_name, 3, kinds), strength, strength)]
            chosen = {"method": "linear"}
            ours = run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method=chosen)
            stock = weights_of(*chained(model, clip, rows))
            assert_close(weights_of(*ours[:2]), stock, f"{model_name} {strength}", 2e-5)


@check
def based_kinds_under_every_kind_of_method():
    """The patch adds what the library merges against the same base, also on a model that is loaded."""
    model, _ = load_model("sd15")
    files = [write_lora("plain", "sd15", 4, 2, 1), write_based("based", "sd15", 2)]
    loras = [merge_ops.load(LORAS / name) for name in files]
    rows = [(name, strength, strength) for name, strength in zip(files, (0.7, -0.6), strict=True)]
    base = {key: weight.float() for key, weight in model.model.state_dict().items()}
    by_name = {stem: target for target, (stem, _) in key_names(model, None).items()}
    by_layer = {
        name: by_name[a.key]
        for x in loras
        for name, a in (x.layers | x.base_dependent).items()
        if a.key in by_name
    }
    unet = {name for name in by_layer if not name.startswith("text")}
    loras = [
        merge_ops.Lora(
            x.name,
            {n: a for n, a in x.layers.items() if n in unet},
            base_dependent={n: a for n, a in x.base_dependent.items() if n in unet},
        )
        for x in loras
    ]
    for method, density in some_methods(("linear", "ties", "even", "knots_ties")):
        chosen = {"method": method, **density}
        ours = run("LoraAlloyLoader", model=model, loras=text_of(rows), method=chosen)[0]
        merged = merge_ops.merge(
            loras,
            [0.7, -0.6],
            method,
            base=lambda name: base.get(by_layer[name]),
            reader="comfyui",
            **density,
        )
        for key, weight in weights_of(ours, None).items():
            (layer,) = (n for n in merged.layers if by_layer[n] == key)
            wanted = base[key] + merged.delta(layer).reshape(base[key].shape)
            off = float((weight - wanted).abs().max())
            assert off <= 2e-5 * float(wanted.abs().max()), (method, key, off)


@check
def biases_norms_and_set_weights():
    """``diff_b``, ``w_norm``, ``b_norm`` and ``set_weight`` are the chain, bit for bit where it is linear."""
    model, clip = load_model("sd15")
    shapes = {key: tuple(weight.shape) for key, weight in model.model.state_dict().items()}
    names = key_names(model, None)
    for seed, name in enumerate(("vectors_a", "vectors_b")):
        random, tensors = torch.Generator().manual_seed(seed), {}
        for key, (stem, shape) in names.items():
            bias = shapes.get(f"{key.removesuffix('.weight')}.bias") if isinstance(key, str) else None
            tensors[f"{stem}.lora_up.weight"] = torch.randn(
                shape[0], 2, *(1 for _ in shape[2:]), generator=random
            )
            tensors[f"{stem}.lora_down.weight"] = torch.randn(2, *shape[1:], generator=random)
            if bias:
                tensors[f"{stem}.diff_b"] = torch.randn(bias, generator=random)
        norms = [key for key, shape in shapes.items() if key.endswith("norm1.weight") and len(shape) == 1]
        for key in norms:
            stem = key.removesuffix(".weight")
            tensors[f"{stem}.w_norm"] = torch.randn(shapes[key], generator=random)
            tensors[f"{stem}.b_norm"] = torch.randn(shapes[key], generator=random)
        head = "diffusion_model.out.0"
        tensors[f"{head}.set_weight"] = torch.arange(float(shapes[f"{head}.weight"][0]))
        save_file(tensors, LORAS / f"{name}.safetensors")
    rows = [("vectors_a.safetensors", 0.7, 0.7), ("vectors_b.safetensors", -0.4, -0.4)]
    ours = run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method={"method": "linear"})
    stock = weights_of(*chained(model, clip, rows))
    assert any(key.endswith(".bias") for key in stock) and norms
    assert_close(weights_of(*ours[:2]), stock, "vectors", 1e-6)
    merge = run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method={"method": "ties"})
    saved = run("LoraAlloySave", lora=merge[2], filename_prefix="loras/vectors", dtype="float32")[0]
    held = merge_ops.load(BASE / "output" / saved)
    assert sum(name.endswith(".bias") for name in held.layers) > len(norms) and len(held.whole_weights) == 1


@check
def based_kinds_need_their_part():
    """Without a model they are refused; without CLIP those of the text encoder are listed."""
    model, _ = load_model("sd15")
    file = write_based("based", "sd15", 4, (dora,))
    stack = run("LoraAlloyStack", loras=f"<lora:{file}:1>")[0]
    try:
        run("LoraAlloyMerge", stack=stack)
    except import_module("alloy_pack.merge_ops").MergeError as error:
        assert "connect model" in str(error) and "DoRA" in str(error), error
    else:
        raise AssertionError("merged without a base")
    lora, text, *_ = run("LoraAlloyMerge", stack=stack, model=model)
    assert "not connected" in text, text
    saved = BASE / "output" / run("LoraAlloySave", lora=lora, filename_prefix="loras/dora")[0]
    assert merge_ops.read_recipe(saved).reader == "comfyui"  # so that it is made again as it was here
    other, _ = load_model("flux")
    try:
        run("LoraAlloyMerge", stack=stack, model=other)
    except import_module("alloy_pack.merge_ops").MergeError as error:
        assert "does not fit this model" in str(error), error
    else:
        raise AssertionError("a DoRA of another model was merged to nothing")


@check
def whole_weights_are_kept_or_named():
    """Those of a part that is not connected stay in the merge, those of another model are said."""
    model, clip = load_model("sd15")
    pair = {f"diffusion_model.input_blocks.1.1.proj_in.lora_{part}.weight" for part in ("up", "down")}
    shape = model.model.state_dict()["diffusion_model.input_blocks.1.1.proj_in.weight"].shape
    random = torch.Generator().manual_seed(0)
    norm = "text_encoders.clip_l.transformer.text_model.final_layer_norm"
    width = clip.patcher.model.state_dict()["clip_l.transformer.text_model.final_layer_norm.weight"].shape[0]
    tensors = {
        key: torch.randn(shape[0] if "up" in key else 2, 2 if "up" in key else shape[1], generator=random)
        for key in sorted(pair)
    }
    tensors |= {f"{norm}.set_weight": torch.arange(float(width)), "strange.norm.set_weight": torch.ones(3)}
    tensors["diffusion_model.middle_block.config"] = torch.tensor(list(b"{}"), dtype=torch.uint8)
    save_file(tensors, LORAS / "whole.safetensors")
    stack = run("LoraAlloyStack", loras="<lora:whole.safetensors:1>")[0]
    status = NODES["LoraAlloyLoader"].execute(
        model=model, loras="<lora:whole.safetensors:1>", method={"method": "linear"}
    )
    assert "1 text encoder layers are merged but not applied" in str(status.ui.as_dict())
    lora, text, *_ = run("LoraAlloyMerge", stack=stack, model=model)
    assert len(lora.merged.whole_weights) == 2, list(lora.merged.whole_weights)
    config = "diffusion_model.middle_block.config"
    assert torch.equal(lora[config], tensors[config])
    assert "2 layers are not in this model or CLIP, such as " in text, text
    patched_clip = run("LoraAlloyApply", lora=lora, strength_model=1.0, strength_clip=1.0, clip=clip)[1]
    (found,) = weights_of(None, patched_clip).values()
    assert torch.equal(found, torch.arange(float(width)).to(found)), found
    stock = chained(None, clip, [("whole.safetensors", 1.0, 1.0)])[1]
    assert_close(weights_of(None, patched_clip), weights_of(None, stock), "set weight", 0.0)


@check
def configurations_reach_versions_that_take_them():
    """A stand-in for newer versions of ComfyUI: a module with ``with_config``, a patcher that calls it."""
    model, _ = load_model("sd15")
    module = model.model.diffusion_model.middle_block
    key, taken = "diffusion_model.middle_block.config", []

    class Patcher(type(model)):
        def add_patches(self, patches, *strengths):
            for name in patches.keys() & {key}:
                assert patches[name][0] == "config"
                place = self.get_model_object(name.removesuffix(".config"))
                taken.append((name, place is module, bytes(patches[name][1][0].tolist()), strengths[0]))
            return super().add_patches({k: p for k, p in patches.items() if k != key}, *strengths)

    write_lora("plain", "sd15", 2, None, 1, every=40)
    tensors = load_file(LORAS / "plain.safetensors") | {
        key: torch.tensor(list(b'{"a": 1}'), dtype=torch.uint8)
    }
    save_file(tensors, LORAS / "configured.safetensors")
    text = text_of([("configured.safetensors", 0.5, 0.5), ("plain.safetensors", 1.0, 1.0)])
    run("LoraAlloyLoader", model=model, loras=text, method={"method": "ties"})
    assert not taken
    model.__class__, module.with_config = Patcher, lambda settings: module
    try:
        for method in ("linear", "ties"):
            run("LoraAlloyLoader", model=model, loras=text, method={"method": method})
        assert taken == [(key, True, b'{"a": 1}', 1.0)] * 2, taken
        lora, said, *_ = run("LoraAlloyMerge", stack=run("LoraAlloyStack", loras=text)[0], model=model)
        assert "not in this model" not in said, said
        assert torch.equal(lora[key], tensors[key])
    finally:
        del module.with_config
        model.__class__ = Patcher.__bases__[0]


@check
def widened_weights():
    """BFL's control LoRAs widen the first layer of Flux."""
    model, _ = load_model("flux")
    rows_, columns = model.model.state_dict()["diffusion_model.img_in.weight"].shape
    random = torch.Generator().manual_seed(0)
    for name in ("wide_a", "wide_b"):
        save_file(
            {
                "diffusion_model.img_in.lora_up.weight": torch.randn(rows_, 4, generator=random),
                "diffusion_model.img_in.lora_down.weight": torch.randn(4, 2 * columns, generator=random),
                "diffusion_model.img_in.reshape_weight": torch.tensor([rows_, 2 * columns]),
            },
            LORAS / f"{name}.safetensors",
        )
    rows = [("wide_a.safetensors", 0.7, 0.7), ("wide_b.safetensors", 0.4, 0.4)]
    ours = run("LoraAlloyLoader", model=model, loras=text_of(rows), method={"method": "linear"})
    assert_close(weights_of(ours[0], None), weights_of(*chained(model, None, rows)), "wide", 1e-6)
    ties = run("LoraAlloyLoader", model=model, loras=text_of(rows), method={"method": "ties"})
    (weight,) = weights_of(ties[0], None).values()
    assert tuple(weight.shape) == (rows_, 2 * columns)
