"""Checks of fused files: loaded by ComfyUI, they are the base with the LoRAs patched in, bit for bit."""

import importlib
import json

import comfy.model_patcher
import comfy.sd
import folder_paths
import torch
from comfy_inside import (
    BASE,
    LORAS,
    assert_close,
    chained,
    check,
    comfy,
    load_file,
    merge_ops,
    run,
    save_file,
    text_of,
    three_loras,
)

WHOLE = "sd15"
LACKING = "clip_l.transformer.text_projection.weight"  # ComfyUI makes one where a file has none
PLAIN = (torch.float32, torch.float16, torch.bfloat16)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def path_of(name):
    """The tiny model's own file."""
    folder = "checkpoints" if name == WHOLE else "diffusion_models"
    return folder_paths.get_full_path_or_raise(folder, f"tiny_{name}.safetensors")


def written(name, tensors, metadata=None):
    file = BASE / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, metadata)
    return file


def cast(name, dtype):
    """The tiny model's file with its matrices in a dtype."""
    tensors = load_file(path_of(name))
    return written("cast", {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()})


def loaded(file, name, dtype=None):
    """``(MODEL, CLIP or None)`` by ComfyUI's stock loaders, with the weights in the dtype of the file."""
    options = {"dtype": dtype} if dtype else {}
    if name != WHOLE:
        return comfy.sd.load_diffusion_model(str(file), model_options=options), None
    model, clip = comfy.sd.load_checkpoint_guess_config(
        str(file), output_vae=False, model_options=options, te_model_options=options
    )[:2]
    with torch.no_grad():
        clip.cond_stage_model.clip_l.transformer.text_projection.weight.zero_()
    return model, clip


def fused(base, rows, name="fused", method="linear", reader="comfyui", **params):
    """Fuse a merge of LoRA files of the list into a base, by the library; return the file and its report."""
    loras = [merge_ops.load(LORAS / row[0]) for row in rows]
    merged = merge_ops.merge(
        loras, [row[1] for row in rows], method, text_weights=[row[2] for row in rows], base=base,
        reader=reader, **params,
    )  # fmt: skip
    out = BASE / f"{name}.safetensors"
    out.unlink(missing_ok=True)
    report = importlib.import_module("alloy_pack.merge_ops.models").fuse(base, merged, out)
    return out, report


def bits(weight):
    """What a weight is made of, quantised or not."""
    parts = [weight._qdata, weight._params.scale] if hasattr(weight, "_qdata") else [weight]
    return [part.contiguous().flatten().view(torch.uint8) for part in parts]


def held_by(patcher):
    return dict(patcher.model.named_parameters())


def assert_same(found, patched, base, what):
    """Every weight is the patched one where ComfyUI patches it, and that of the base anywhere else."""
    own, stock = held_by(found), held_by(base)
    assert own.keys() == stock.keys() and patched.patches, what
    with torch.inference_mode():
        for key in own:
            if key == LACKING:
                continue
            wanted = stock[key]
            if key in patched.patches:
                wanted = patched.patch_weight_to_device(key, return_weight=True)
            for a, b in zip(bits(own[key]), bits(wanted), strict=True):
                assert torch.equal(a, b), f"{what}: {key}, {int((a != b).sum())} of {a.numel()} bytes differ"


# text encoders are never in fp8 once they are loaded
_CASES = [
    ("sd15", torch.float16),
    ("sd15", FLOAT8[0]),
    ("sdxl", torch.bfloat16),
    ("sd3", torch.float32),
    ("wan", torch.float32),
]
for _case in (*_CASES, *(("flux", dtype) for dtype in (*PLAIN, *FLOAT8))):

    @check
    def a_fused_file_is_what_load_lora_patches(case=_case):
        """Three LoRAs one after the other by stock Load LoRA, on every weight that ComfyUI's maps have."""
        name, dtype = case
        rows, base = three_loras(name), cast(name, dtype)
        out, report = fused(base, rows)
        assert report.misfits.keys() <= {"text_encoder.text_projection"}, report.misfits
        stock, patched = loaded(base, name, dtype), chained(*loaded(base, name, dtype), rows)
        found = loaded(out, name, dtype)
        assert_same(found[0], patched[0], stock[0], f"{name} {dtype}")
        if found[1] is not None and dtype in PLAIN:
            assert_same(found[1].patcher, patched[1].patcher, stock[1].patcher, f"{name} {dtype} CLIP")


def scaled(form, marker):
    """The tiny Flux with matrices in scaled fp8, in one of ComfyUI's three ways to say so."""
    tensors = {key: tensor.float() for key, tensor in load_file(path_of("flux")).items()}
    linears = [k for k, t in tensors.items() if t.ndim == 2 and "blocks." in k][::2]
    dtype = getattr(torch, form)
    layers = {}
    for key in linears:
        stem, weight = key.removesuffix(".weight"), tensors[key].float()
        scale = weight.abs().amax() / torch.finfo(dtype).max
        tensors[key] = (weight / scale).to(dtype)
        tensors[f"{stem}.{'scale_weight' if marker == 'marker' else 'weight_scale'}"] = scale
        layers[stem] = {"format": form}
        if marker == "tensors":
            stated = json.dumps(layers[stem]).encode()
            tensors[f"{stem}.comfy_quant"] = torch.tensor(list(stated), dtype=torch.uint8)
        if marker == "marker":
            tensors[f"{stem}.scale_input"] = torch.tensor(1.0)
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})} if marker == "metadata" else None
    if marker == "marker":
        tensors["scaled_fp8"] = torch.zeros(2, dtype=dtype)
    return written("scaled", tensors, metadata)


for _case in (
    ("float8_e4m3fn", "marker"), ("float8_e4m3fn", "metadata"), ("float8_e4m3fn", "tensors"),
    ("float8_e5m2", "tensors"),
):  # fmt: skip

    @check
    def scaled_fp8_gets_the_scale_that_comfyui_gives_it(case=_case):
        """The numbers and the fresh scale of each weight are those of ComfyUI's own patched weights."""
        rows, base = three_loras("flux"), scaled(*case)
        out, report = fused(base, rows)
        stock, patched = loaded(base, "flux"), chained(*loaded(base, "flux"), rows)
        quantised = [key for key, weight in held_by(stock[0]).items() if hasattr(weight, "_qdata")]
        assert len(quantised) > 3 and set(quantised) & set(patched[0].patches)
        assert_same(loaded(out, "flux")[0], patched[0], stock[0], case)
        worst = max(line.rounding / line.weight for line in report.changes if line.rounding)
        assert 0.001 < worst < 0.1, worst


@check
def a_fused_file_is_what_the_node_patches():
    """TIES of three LoRAs, whose delta is made entry by entry."""
    for name in ("sd3", "flux"):
        rows = [(file, weight, weight) for file, weight, _ in three_loras(name)]
        for file, *_ in rows:  # a layer on q, k and v together beside one on each is added up in any order
            tensors = load_file(LORAS / file)
            apart = {key: tensor for key, tensor in tensors.items() if "linear1_qkv" not in key}
            save_file(apart, LORAS / file)
        base = cast(name, torch.float16)
        out, _ = fused(base, rows, method="ties", density=0.4)
        model, clip = loaded(base, name, torch.float16)
        inputs = {"model": model, "loras": text_of(rows), "method": {"method": "ties", "density": 0.4}}
        patched = run("LoraAlloyLoader", **inputs, **({"clip": clip} if clip else {}))
        found, stock = loaded(out, name, torch.float16), loaded(base, name, torch.float16)
        assert_same(found[0], patched[0], stock[0], name)
        if clip is not None:
            assert_same(found[1].patcher, patched[1].patcher, stock[1].patcher, f"{name} CLIP")


def adapters(rows, columns):
    """Adapters of other kinds, by what their keys end with; the first needs the weight of the base."""
    random = torch.Generator().manual_seed(1)

    def made(*shape):
        return torch.randn(shape, generator=random) * 0.05

    lora = {"lora_down.weight": made(4, columns), "lora_up.weight": made(rows, 4), "alpha": torch.tensor(2.0)}
    loha = {f"hada_w{i}_{side}": made(*shape) for i in (1, 2) for side, shape in (
        ("a", (rows, 4)), ("b", (4, columns)),
    )}  # fmt: skip
    yield {**lora, "dora_scale": made(rows, 1).abs() + 1}
    yield {"lokr_w1": made(4, 4), "lokr_w2": made(rows // 4, columns // 4), "alpha": torch.tensor(1.0)}
    yield {**loha, "alpha": torch.tensor(2.0)}
    yield {"diff": made(rows, columns), "diff_b": made(rows)}


@check
def every_kind_is_what_comfyui_patches():
    """DoRA, LoKr, LoHa, a difference with its bias, and a weight that is set: as stock Load LoRA has them."""
    base = cast("flux", torch.float32)
    tensors = load_file(base)
    stems = [k.removesuffix(".weight") for k, t in tensors.items() if t.ndim == 2 and "double_blocks." in k]
    own = {}
    for stem, adapter in zip(stems, adapters_for(stems, tensors), strict=False):
        own |= {f"diffusion_model.{stem}.{end}": tensor for end, tensor in adapter.items()}
    own[f"diffusion_model.{stems[5]}.set_weight"] = tensors[f"{stems[5]}.weight"] * 2
    save_file({key: tensor.contiguous() for key, tensor in own.items()}, LORAS / "kinds.safetensors")
    rows = [("kinds.safetensors", 0.8, 0.8)]
    out, report = fused(base, rows)
    assert not report.misfits and len(report.fused) == 6, report
    patched = chained(*loaded(base, "flux", torch.float32), rows)[0]
    with torch.inference_mode():
        wanted = {key: patched.patch_weight_to_device(key, return_weight=True) for key in patched.patches}
    found = {
        key: weight for key, weight in held_by(loaded(out, "flux", torch.float32)[0]).items() if key in wanted
    }
    assert len(wanted) == 6
    assert_close(found, wanted, "kinds", 1e-5)


def adapters_for(stems, tensors):
    """One adapter of each kind, in the size of the weight of each stem in turn."""
    for place in range(4):
        shape = tensors[f"{stems[place]}.weight"].shape
        yield list(adapters(*shape))[place]
