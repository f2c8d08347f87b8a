"""Checks of the patched weights: each is what the library or stock ComfyUI says, on every tiny model."""

import comfy.lora
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_inside import (
    BASE,
    LORAS,
    MODELS,
    OF_EACH_KIND,
    assert_close,
    chained,
    check,
    key_names,
    load_model,
    merge_ops,
    patched,
    run,
    some_methods,
    text_of,
    three_loras,
    weights_of,
    write_lora,
)

for _name in MODELS:

    @check
    def linear_is_the_chain(name=_name):
        """Bit for bit what chained Load LoRA nodes give, for MODEL and CLIP."""
        model, clip = load_model(name)
        rows = three_loras(name)
        ours = run(
            "LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method={"method": "linear"}
        )
        assert_close(weights_of(*ours[:2]), weights_of(*chained(model, clip, rows)), name)

    @check
    def methods_are_base_plus_delta(name=_name):
        """Every other method adds the library's merged delta to the base weight."""
        model, clip = load_model(name)
        rows = three_loras(name)
        base = {
            k: v.float()
            for m in (model, clip.patcher if clip else None)
            if m
            for k, v in m.model.state_dict().items()
        }
        by_name = {stem: target for target, (stem, _) in key_names(model, clip).items()}
        loras = [merge_ops.load(LORAS / row[0]) for row in rows]
        for method, density in some_methods(None if name == "sd15" else OF_EACH_KIND):
            chosen = {"method": method, **density}
            ours = run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method=chosen, seed=5)
            merged = merge_ops.merge(
                loras, [r[1] for r in rows], method, text_weights=[r[2] for r in rows], seed=5, **density
            )
            expected = {}
            for layer in merged.layers:
                target = by_name[merged.layer(layer).template.key]
                key, offset, function = (
                    target
                    if not isinstance(target, str) and len(target) == 3
                    else ((target, None, None) if isinstance(target, str) else (*target, None))
                )
                weight = expected.setdefault(key, base[key].clone())
                part = weight if offset is None else weight.narrow(*offset)
                delta = merged.delta(layer).reshape(part.shape)
                part += delta if function is None else function(delta)
            assert_close(weights_of(*ours[:2]), expected, f"{name} {method}", 2e-6)


@check
def peft_types_are_the_library():
    """Method peft with each of PEFT's eleven names gives what the library gives."""
    model, _ = load_model("flux")
    rows = [(write_lora(f"flux_p{i}", "flux", 4, 4, 10 + i), 0.8, 0.8) for i in range(2)]
    loras = [merge_ops.load(LORAS / row[0]) for row in rows]
    for kind in merge_ops.COMBINATION_TYPES:
        method = {
            "method": "peft",
            "combination_type": kind,
            "density": 0.5,
            "svd_rank": 3,
            "svd_clamp": None,
        }
        ours = run("LoraAlloyLoader", model=model, loras=text_of(rows), method=method)
        merged = merge_ops.merge(loras, [0.8, 0.8], combination_type=kind, density=0.5, svd_rank=3)
        norm = sum(float(merged.delta(name).norm()) ** 2 for name in merged.layers) ** 0.5
        base = {k: v.float() for k, v in model.model.state_dict().items()}
        change = sum(float((v - base[k]).norm()) ** 2 for k, v in weights_of(ours[0], None).items()) ** 0.5
        assert abs(change - norm) < 1e-3 * norm, (kind, change, norm)


@check
def the_patch_is_lazy_and_rebuildable():
    """It holds factors and scalars only; a copy made as ComfyUI makes it gives the same bits again."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    ours = run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method={"method": "ties"})[0]
    sizes = []

    def tensors(value):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            for item in value:
                yield from tensors(item)
        else:
            assert value is None or isinstance(value, (str, int, float)), type(value)

    for key, patches in ours.patches.items():
        ((strength, adapter, *_),) = patches
        held = sum(t.numel() for t in tensors(adapter.weights))
        sizes.append(held / model.model.state_dict()[key].numel())
        counter = [0]
        comfy.lora.prefetch_prepared_value(adapter, counter, None, None, False)
        copy = type(adapter)(adapter.loaded_keys, adapter.weights)
        weight = torch.zeros_like(model.model.state_dict()[key], dtype=torch.float32)
        first = copy.calculate_weight(weight.clone(), key, strength, 1.0, None, lambda a: a)
        assert torch.equal(
            first, adapter.calculate_weight(weight.clone(), key, strength, 1.0, None, lambda a: a)
        )
    assert sum(sizes) / len(sizes) < 0.2, sum(sizes) / len(sizes)
    again = ours.clone()
    assert_close(patched(again), patched(ours), "clone")


@check
def half_and_fp8_weights():
    """fp16, bf16 and fp8 base weights get the change, within what their precision can hold."""
    model, _ = load_model("flux")
    rows = three_loras("flux")
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 1.5e-2), (torch.float8_e4m3fn, 0.2)):
        path = folder_paths.get_full_path_or_raise("diffusion_models", "tiny_flux.safetensors")
        other = comfy.sd.load_diffusion_model(path, model_options={"dtype": dtype})
        ours = run("LoraAlloyLoader", model=other, loras=text_of(rows), method={"method": "ties"})[0]
        exact = run("LoraAlloyLoader", model=model, loras=text_of(rows), method={"method": "ties"})[0]
        a, b = patched(ours), patched(exact)
        for key in a:
            assert a[key].dtype == dtype, (key, a[key].dtype)
        assert_close(
            {k: v.float() for k, v in a.items()}, {k: v.float() for k, v in b.items()}, str(dtype), tolerance
        )


@check
def save_then_stock_load():
    """What Save LoRA writes, stock Load LoRA reads at strength 1: the merged weights within the error."""
    for name in MODELS:
        model, clip = load_model(name)
        rows = three_loras(name)
        for method, tolerance in (("linear", 1e-3), ("magnitude_prune", 0.6)):
            ours = run(
                "LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method={"method": method}
            )
            path = run("LoraAlloySave", lora=ours[2], filename_prefix=f"loras/{name}_{method}")[0]
            saved = comfy.utils.load_torch_file(str(BASE / "output" / path), safe_load=True)
            stock = comfy.sd.load_lora_for_models(model, clip, saved, 1.0, 1.0)
            a, b = weights_of(*stock), weights_of(*ours[:2])
            base = {
                k: v.float()
                for m in (model, clip.patcher if clip else None)
                if m
                for k, v in m.model.state_dict().items()
            }
            assert a.keys() == b.keys(), (name, method, len(a), len(b))
            off = sum(float((a[k] - b[k]).norm()) ** 2 for k in a) ** 0.5
            change = sum(float((b[k] - base[k]).norm()) ** 2 for k in a) ** 0.5
            assert off <= tolerance * change, (name, method, off / change)
