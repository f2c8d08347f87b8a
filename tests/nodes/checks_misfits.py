"""Checks of LoRAs of which some weights have another shape than the model's: the rest is applied."""

import math

import torch
from comfy_inside import (
    LORAS,
    NODES,
    OF_EACH_KIND,
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
from learning_inside import PROMPTS, SMALL, fresh
from safetensors.torch import load_file, save_file

PATCHES = "diffusion_model.patch_embedding"  # of Wan, a convolution with 16 input channels
RANDOM = torch.Generator().manual_seed(3)


def noise(*shape):
    return torch.randn(shape, generator=RANDOM) * 0.05


def with_tensors(file, name, tensors):
    """The file again, with more tensors."""
    save_file(load_file(LORAS / file) | tensors, LORAS / f"{name}.safetensors")
    return f"{name}.safetensors"


def merged(rows, model_name, method=None, **inputs):
    """The loader's outputs, and what its node shows."""
    model, clip = load_model(model_name)
    chosen = method or {"method": "linear"}
    with torch.inference_mode():
        out = NODES["LoraAlloyLoader"].execute(
            model=model, clip=clip, loras=text_of(rows), method=chosen, **inputs
        )
    return out.result, out.ui.as_dict()["text"][0]


# kinds of adapters of a weight (o, i, *kernel), by their keys
def low_rank(o, i):
    return {"lora_up.weight": noise(o, 2), "lora_down.weight": noise(2, i)}


def kronecker(o, i):
    return {"lokr_w1": noise(2, 2), "lokr_w2": noise(o // 2, i // 2)}


def hadamard(o, i):
    sizes = {"w1_a": (o, 2), "w1_b": (2, i), "w2_a": (o, 2), "w2_b": (2, i)}
    return {f"hada_{name}": noise(*size) for name, size in sizes.items()}


def dora(o, i):
    return {**low_rank(o, i), "dora_scale": noise(o, 1) + 1}


def rotated(o, i):
    return {"oft_blocks": noise(o // 2, 2, 2)}


def gated(o, i):
    return {
        "a1.weight": noise(i, 2),
        "a2.weight": noise(2, i),
        "b1.weight": noise(o, 2),
        "b2.weight": noise(2, i),
    }


def factors(o, i):
    return {"weight": noise(o), "on_input": torch.tensor([False])}


KINDS = {
    "LoRA": low_rank, "LoKr": kronecker, "LoHa": hadamard, "difference": lambda o, i: {"diff": noise(o, i)},
    "DoRA": dora, "OFT": rotated, "GLoRA": gated, "(IA)3": factors,
    "replaced": lambda o, i: {"set_weight": noise(o, i)},
}  # fmt: skip


def misfits():
    """``(what, stem of the keys, tensors)`` of weights that the tiny Wan has in another shape."""
    block = "diffusion_model.blocks.0"
    yield "a text-to-video input", PATCHES, {"diff": noise(256, 36, 1, 2, 2)}
    yield (
        "a convolution",
        PATCHES,
        {"lora_up.weight": noise(256, 2, 1, 1, 1), "lora_down.weight": noise(2, 36, 1, 2, 2)},
    )
    yield "another kernel", PATCHES, {"diff": noise(256, 16, 1, 4, 4)}
    yield "a norm", f"{block}.norm3", {"diff": noise(300)}
    yield "a norm that is set", f"{block}.self_attn.norm_q", {"set_weight": noise(300)}
    yield "a bias", f"{block}.self_attn.q", {"diff_b": noise(300)}
    yield "a bare parameter", f"{block}.modulation", {"diff": noise(1, 6, 300)}
    for name, kind in KINDS.items():
        yield name, "diffusion_model.text_embedding.0", kind(300, 44)


@check
def one_misfit_does_not_cost_the_lora():
    """It is skipped by name, whatever it is; everything else is what a chain of Load LoRA applies."""
    plain = write_lora("fits", "wan", 4, 8, 1, every=2)
    taken = ("text_embedding", "patch_embedding", "modulation")
    tensors = load_file(LORAS / plain)
    save_file({key: tensors[key] for key in tensors if not any(part in key for part in taken)}, LORAS / plain)
    wanted = weights_of(*chained(*load_model("wan"), [(plain, 0.7, 0.7)]))
    for what, stem, parts in misfits():
        file = with_tensors(plain, "with_misfit", {f"{stem}.{role}": part for role, part in parts.items()})
        out, says = merged([(file, 0.7, 0.7)], "wan")
        assert "with_misfit: skipped 1 weight: " in says and stem.split(".", 1)[1] in says, (what, says)
        ours = weights_of(*out[:2])
        assert_close({key: ours[key] for key in wanted}, wanted, what)
        assert ours.keys() == wanted.keys(), (what, ours.keys() ^ wanted.keys())


@check
def the_other_lora_still_changes_the_weight():
    """Where only one of two LoRAs misfits, the other is applied to that weight, by every kind of method."""
    model, _ = load_model("wan")
    names = {key: stem for key, (stem, _) in key_names(model, None).items()}
    key = "diffusion_model.text_embedding.0.weight"
    good, other = write_lora("good_one", "wan", 4, 8, 1), write_lora("bad_one", "wan", 4, 4, 2)
    bad = {k: v for k, v in load_file(LORAS / other).items() if not k.startswith(f"{names[key]}.")}
    for kind, make in KINDS.items():
        parts = {f"{names[key]}.{role}": part for role, part in make(300, 44).items()}
        save_file(bad | parts, LORAS / other)
        for method, density in some_methods(("linear", *OF_EACH_KIND)):
            chosen = {"method": method, **density}
            out, says = merged([(good, 0.7, 0.7), (other, -0.5, -0.5)], "wan", chosen, seed=5)
            assert "bad_one: skipped 1 weight: " in says and "text_embedding" in says, (kind, method, says)
            alone = merge_ops.merge([merge_ops.load(LORAS / good)], [0.7], method, seed=5, **density)
            (layer,) = (n for n in alone.layers if "text_embedding.0" in n or "text_embedding_0" in n)
            base = model.model.state_dict()[key].float()
            assert_close({key: weights_of(out[0], None)[key].float()}, {key: base + alone.delta(layer)},
                         f"{kind} {method}", 2e-3)  # fmt: skip


@check
def most_misfits_are_another_model():
    """A LoRA whose weights mostly have another shape is refused with its name, both shapes and the counts."""
    file = write_lora("twice_as_wide", "wan", 2, 2, 1)
    tensors = load_file(LORAS / file)
    wide = {k: torch.cat((v, v), dim=1) if "lora_down" in k else v for k, v in tensors.items()}
    downs = sorted(key for key in tensors if "lora_down" in key)
    for share, refused in ((0.4, False), (0.6, True), (1.0, True)):
        chosen = set(downs[: math.ceil(share * len(downs))])
        save_file({k: wide[k] if k in chosen else v for k, v in tensors.items()}, LORAS / file)
        try:
            _, says = merged([(file, 1.0, 1.0)], "wan")
        except merge_ops.MergeError as error:
            says = str(error)
            assert refused and says.startswith(f"twice_as_wide: {len(chosen)} of {len(downs)} weights"), says
            assert "another base model" in says, says
        else:
            assert not refused and f"skipped {len(chosen)} weights" in says, says


@check
def applying_a_merge_skips_misfits():
    """Merge LoRAs has no model to ask; Apply Merged LoRA skips what does not fit and says so."""
    file = write_lora("for_later", "wan", 4, 8, 1)
    keys = {key for key in load_file(LORAS / file) if "patch_embedding" in key}
    tensors = {key: value for key, value in load_file(LORAS / file).items() if key not in keys}
    save_file(tensors | {f"{PATCHES}.diff": noise(256, 36, 1, 2, 2)}, LORAS / file)
    model, _ = load_model("wan")
    for method in ("linear", "ties"):
        stack = run("LoraAlloyStack", loras=f"<lora:{file}:0.7>")[0]
        lora = run(
            "LoraAlloyMerge", stack=stack, method=run("LoraAlloyMethod", method={"method": method})[0]
        )[0]
        with torch.inference_mode():
            out = NODES["LoraAlloyApply"].execute(
                lora=lora, strength_model=1.0, strength_clip=1.0, model=model
            )
        says = out.ui.as_dict()["text"][0]
        assert "skipped 1 weight: " in says and "patch_embedding" in says, says
        assert len(weights_of(out.result[0], None)) == len(tensors) // 3, method


@check
def a_misfit_is_neither_recorded_nor_distilled():
    """Record LoRAs says what it skips, and the trained LoRA has no such layer."""
    model, clip = fresh()
    prompts = "|".join(PROMPTS["learn_a"])
    with_tensors(
        "learn_a.safetensors", "odd_a", {"diffusion_model.input_blocks.0.0.diff": noise(320, 9, 3, 3)}
    )
    recording, report = run(
        "LoraAlloyRecord", model=model, clip=clip, loras=f"<lora:odd_a:1:0:prompt={prompts}>", **SMALL
    )
    assert "odd_a: skipped 1 weight: " in report and "(320, 9, 3, 3)" in report, report
    lora = run("LoraAlloyDistill", recording=recording, steps=2, batch=2, rank=4)[0]
    held = len(load_file(LORAS / "learn_a.safetensors")) // 2
    assert len(lora.merged.layers) == held, (len(lora.merged.layers), held)
