"""Checks of adapters that are not low rank: LoHa, LoKr and full differences, beside a plain LoRA."""

import math
from dataclasses import fields, is_dataclass
from importlib import import_module

import torch
from comfy_inside import (
    LORAS,
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
from safetensors.torch import save_file


def loha(shape, random):
    rows, columns = shape[0], math.prod(shape[1:])
    sizes = {"w1_a": (rows, 3), "w1_b": (3, columns), "w2_a": (rows, 3), "w2_b": (3, columns)}
    return {f"hada_{name}": torch.randn(size, generator=random) * 0.2 for name, size in sizes.items()}


def lokr(shape, random):
    """``w1`` whole and ``w2`` decomposed; a convolution's kernel is in ``w2``."""
    rows, columns = (math.gcd(size, 4) for size in shape[:2])
    w2 = (shape[0] // rows, math.prod(shape[1:]) // columns)
    return {
        "lokr_w1": torch.randn(rows, columns, generator=random) * 0.2,
        "lokr_w2_a": torch.randn(w2[0], 2, generator=random) * 0.2,
        "lokr_w2_b": torch.randn(2, w2[1], generator=random) * 0.2,
    }


def write_kinds(name, model_name, seed):
    """A file on every weight of a model: LoHa, LoKr and full differences in turn."""
    random, tensors = torch.Generator().manual_seed(seed), {}
    for i, (stem, shape) in enumerate(sorted(key_names(*load_model(model_name)).values())):
        if i % 3 == 2:
            tensors[f"{stem}.diff"] = torch.randn(shape, generator=random) * 0.05
            continue
        parts = (loha, lokr)[i % 3](shape, random)
        tensors |= {f"{stem}.{role}": tensor for role, tensor in parts.items()}
        tensors[f"{stem}.alpha"] = torch.tensor(1.5)
    save_file(tensors, LORAS / f"{name}.safetensors")
    return f"{name}.safetensors"


@check
def other_kinds_are_the_chain():
    """``linear`` of a plain LoRA and of other kinds is what chained Load LoRA nodes give."""
    for model_name in ("sd15", "flux", "sd3"):
        model, clip = load_model(model_name)
        rows = [
            (write_lora("plain", model_name, 4, 2, 1), 0.7, 0.4),
            (write_kinds("kinds", model_name, 2), -0.6, 0.9),
        ]
        chosen = {"method": "linear"}
        ours = run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method=chosen)
        assert_close(weights_of(*ours[:2]), weights_of(*chained(model, clip, rows)), model_name, 1e-5)


@check
def other_kinds_under_every_kind_of_method():
    """The patch adds what the library merges; ComfyUI rebuilds it from tensors and scalars."""
    model, _ = load_model("sd15")
    files = [write_lora("plain", "sd15", 4, 2, 1), write_kinds("kinds", "sd15", 2)]
    loras = [merge_ops.load(LORAS / name) for name in files]
    rows = [(name, strength, strength) for name, strength in zip(files, (0.7, -0.6), strict=True)]
    base = {key: weight.float() for key, weight in model.model.state_dict().items()}
    by_name = {stem: target for target, (stem, _) in key_names(model, None).items()}
    for method, density in some_methods(OF_EACH_KIND):
        chosen = {"method": method, **density}
        ours = run("LoraAlloyLoader", model=model, loras=text_of(rows), method=chosen, seed=5)[0]
        merged = merge_ops.merge(loras, [0.7, -0.6], method, seed=5, **density)
        for key, weight in weights_of(ours, None).items():
            (layer,) = (n for n in merged.layers if by_name.get(merged.layer(n).template.key) == key)
            wanted = base[key] + merged.delta(layer).reshape(base[key].shape)
            off = float((weight - wanted).abs().max())
            assert off <= 1e-5 * float(wanted.abs().max()), (method, key, off)


@check
def a_patch_refuses_what_it_cannot_hold():
    """A kind of layer that is not in the patch's table is refused when it is packed, not dropped later."""

    class Unlisted(merge_ops.LowRank):
        pass

    patch = import_module("alloy_pack.nodes.model.patches.patch")
    factors = torch.ones(3, 2), torch.ones(2, 5)
    for unlisted, says in (
        (Unlisted(*factors), "Unlisted"),
        (merge_ops.LowRank(*factors, padded_to=[3, 5]), "list"),  # ComfyUI could not rebuild the adapter
        (merge_ops.LowRank(*factors, key=(Unlisted(*factors),)), "tuple"),
    ):
        merged = merge_ops.merge([merge_ops.Lora("a", {"fc": unlisted})], method="ties", density=0.5)
        try:
            patch.MergedAdapter.of(merged.layer("fc"), whole=False)
        except TypeError as error:
            assert f"cannot hold a {says}: it is neither" in str(error), error
        else:
            raise AssertionError(f"a layer with a {says} was packed")


@check
def a_patch_holds_every_record():
    """Whatever a row of the adapters names is packed, and unpacked as it was but for the base weight."""
    patch, pack = import_module("alloy_pack.nodes.model.patches.patch"), "alloy_pack.merge_ops"
    adapters, lora = import_module(f"{pack}.adapters"), import_module(f"{pack}.lora")
    some, weight = torch.rand(3, 2), torch.rand(3, 5)
    low = lora.LowRank(some, torch.rand(2, 5), 0.5, key="fc")
    trained = adapters.Trained(weight + 1, key="fc")
    examples = [
        low,
        trained,
        adapters.Bound(trained, weight, "comfyui", 0.5, "a"),
        adapters.Hadamard(some, some.T, some, some.T, 0.5),
        adapters.Kronecker(low, some, 2, 0.5),
        adapters.Full(weight, 0.5),
        adapters.Dora(low, some[:, :1]),
        adapters.Glora(some, some.T, some, some.T, 0.5),
        adapters.Ia3(some[:, 0], False, stored=(3, 1)),
        adapters.Oft(torch.rand(3, 2, 2), None, 0.5),
        adapters.InputRotation(torch.rand(3, 2, 2), some[:, :1]),
        lora.WholeWeight(weight, "set", "fc", (0, 2), True),
    ]
    named = {record for kind in adapters.KINDS for record in kind.records}
    assert {type(example) for example in examples} == named, "a record without an example here"
    for example in examples:
        again = patch._unpack(patch._pack(example), weight)
        assert type(again) is type(example)
        assert_alike(again, example)


def assert_alike(again, example):
    """The same record, field by field; their own ``==`` compares identity."""
    for field in fields(example):
        ours, theirs = getattr(again, field.name), getattr(example, field.name)
        if is_dataclass(theirs):
            assert_alike(ours, theirs)
        else:
            same = torch.equal(ours, theirs) if isinstance(theirs, torch.Tensor) else ours == theirs
            assert same, (type(example).__name__, field.name)
