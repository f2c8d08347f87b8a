"""Names in the real ComfyUI: of fused weights, which its maps lack, and of files that had no prefix."""

import re
import sys
from importlib import import_module
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy_inside import BASE, check, comfy, load_file, merge_ops

sys.path.append(str(Path(__file__).parents[1] / "architectures"))

import comfyui_models
import keys
from configs import COMFYUI

fit_to_model = import_module("alloy_pack.nodes.model.places.fitting").fit_to_model

KREA2 = {
    "image_model": "krea2", "features": 64, "channels": 16, "patch": 2, "layers": 1, "heads": 4, "kvheads": 2,
    "txtlayers": 2, "txtdim": 64, "txtheads": 4, "txtkvheads": 2,
}  # fmt: skip
BLOCK = "text_fusion_layerwise_blocks_0_attn_"
WEIGHTS = "diffusion_model.txtfusion.layerwise_blocks.0.attn."


def small_krea2():
    """A model with random weights, its patcher, and the rows of q, k and v in its text fusion."""
    model = comfy.supported_models.Krea2({**comfy.supported_models.Krea2.unet_config, **KREA2})
    model = model.get_model({}, "", torch.device("cpu"))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=random) * 0.1)
    cpu = torch.device("cpu")
    weights = [model.state_dict()[f"{WEIGHTS}w{letter}.weight"].float() for letter in "qkv"]
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu), weights


def adapters(rows, columns):
    """Every kind of adapter on the fused weight, by what its keys end with."""
    random = torch.Generator().manual_seed(1)

    def made(*shape):
        return torch.randn(shape, generator=random) * 0.1

    lora = {"lora_down.weight": made(4, columns), "lora_up.weight": made(rows, 4), "alpha": torch.tensor(2.0)}
    lokr = {"lokr_w1": made(4, 4), "lokr_w2": made(rows // 4, columns // 4), "alpha": torch.tensor(1.0)}
    loha = {f"hada_w{i}_{side}": made(*shape) for i in (1, 2) for side, shape in (
        ("a", (rows, 4)), ("b", (4, columns)),
    )}  # fmt: skip
    yield "LoRA", lora
    yield "LoHa", {**loha, "alpha": torch.tensor(2.0)}
    yield "LoKr", lokr
    yield "full difference", {"diff": made(rows, columns)}
    yield "DoRA over rows", {**lora, "dora_scale": made(rows, 1).abs() + 1}
    yield "DoRA over columns", {**lokr, "dora_scale": made(1, columns).abs() + 1}


@check
def a_fused_weight_goes_to_its_parts():
    """Krea 2 has wq, wk and wv; what a trainer learned as to_qkv is their rows, of every kind."""
    patcher, weights = small_krea2()
    whole = torch.cat(weights)
    rows = [weight.shape[0] for weight in weights]
    assert rows[0] != rows[1]
    for label, tensors in adapters(*whole.shape):
        own = {f"lycoris_{BLOCK}to_qkv.{end}": tensor for end, tensor in tensors.items()}
        lora = merge_ops.formats.from_tensors(label, own)
        fitted = fit_to_model([lora], patcher, None)
        assert not fitted.missing, (label, fitted.missing)
        by_key = {target.key: fitted.loras[0].layers[name] for name, target in fitted.unet.items()}
        names = [f"{WEIGHTS}w{letter}.weight" for letter in "qkv"]
        assert set(by_key) == set(names), (label, sorted(by_key))
        reference = merge_ops.formats.from_tensors(label, own)
        (bound,) = merge_ops.merging.bind.bind([reference], lambda name: whole, "comfyui")
        expected = next(iter(bound.layers.values())).matrix().split(rows)
        for key, part in zip(names, expected, strict=True):
            assert torch.allclose(by_key[key].matrix(), part, atol=1e-5), (label, key)


@check
def a_fused_weight_meets_its_parts():
    """A file with to_qkv beside one with to_q: the sum on the query's weight, in the merge of a node too."""
    patcher, weights = small_krea2()
    whole = torch.cat(weights)
    (_, tensors), *_ = adapters(*whole.shape)
    stem = "transformer.text_fusion.layerwise_blocks.0.attn.to_qkv"
    fused = {f"{stem}.{end}": tensor for end, tensor in tensors.items()}
    split = {
        f"lycoris_{BLOCK}to_q.lora_down.weight": torch.ones(2, whole.shape[1]),
        f"lycoris_{BLOCK}to_q.lora_up.weight": torch.ones(weights[0].shape[0], 2),
    }
    loras = [merge_ops.formats.from_tensors(name, own) for name, own in (("fused", fused), ("split", split))]
    fitted = fit_to_model(loras, patcher, None)
    merged = merge_ops.merge(fitted.loras)
    assert len(merged.layers) == 3 and not fitted.missing and not fitted.apart
    name = next(name for name, target in fitted.unet.items() if target.key == f"{WEIGHTS}wq.weight")
    own = next(iter(loras[0].layers.values())).matrix()[: weights[0].shape[0]]
    assert torch.allclose(merged.delta(name), own + 2, atol=1e-4)


# diffusers' names of these models, or some of them, are in no map of stock ComfyUI's, whatever their prefix
UNKNOWN = {"wan_t2v", "wan_i2v", "hunyuan", "lumina2"}
UNETS = ("sd1", "sd2", "sdxl")
PREFIXES = ("diffusion_model.", "transformer.", "lora_unet_", "lora_transformer_", "lycoris_")


def early(names):
    """The layers outside the blocks, and those of the first two blocks of each sequence."""
    numbers = {name: re.search(r"\.(\d+)\.", name) for name in names}
    return [name for name, found in numbers.items() if found is None or int(found[1]) < 2]


def spelled(prefix, name):
    """A name with a prefix: with underscores after one that ends in one."""
    return prefix + (name.replace(".", "_") if prefix.endswith("_") else name)


def known_to_stock(model, tensors):
    """How many modules of a file stock ComfyUI finds in the model."""
    patches = comfy.lora.load_lora(
        comfy.lora_convert.convert_lora(dict(tensors)),
        comfy.lora.model_lora_keys_unet(model, {}),
        log_missing=False,
    )
    weights = model.state_dict()
    return sum((key if isinstance(key, str) else key[0]) in weights for key in patches)


for _name in COMFYUI:

    @check
    def saved_without_prefix(architecture=_name):
        """Names without a prefix are saved so that stock ComfyUI finds all that it could ever find."""
        model = comfyui_models.empty_model(architecture)
        for source in ("comfyui", "diffusers"):
            shapes = keys.shapes(architecture, source)
            names = early(shapes)
            best = max(
                known_to_stock(model, file_of({spelled(prefix, name): shapes[name] for name in names}))
                for prefix in PREFIXES
            )
            if not (source == "diffusers" and architecture in UNKNOWN):
                assert best > len(names) / 2, (architecture, source, best)
            lora = merge_ops.formats.from_tensors("bare", file_of({name: shapes[name] for name in names}))
            # stock ComfyUI knows diffusers' names of a UNet's attention only
            for form in ("auto", "kohya") if architecture in UNETS else ("auto", "kohya", "diffusers"):
                file = BASE / "saved.safetensors"
                merge_ops.save(merge_ops.merge([lora]), file, format=form, overwrite=True)
                found = known_to_stock(model, load_file(file))
                assert found >= best or best < 3, (architecture, source, form, found, best)


def file_of(stems):
    """A LoRA of rank 1 on each stem, without any part of a pipeline in front."""
    tensors = {}
    for stem, shape in stems.items():
        up, down = keys.sizes(shape, 1)
        tensors[f"{stem}.lora_up.weight"] = torch.ones(up, dtype=torch.float16)
        tensors[f"{stem}.lora_down.weight"] = torch.ones(down, dtype=torch.float16)
    return tensors
