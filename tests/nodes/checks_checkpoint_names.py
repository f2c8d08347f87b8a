"""Checks of names in checkpoints: the library finds the weights that stock ComfyUI finds, rows alike."""

import sys
from importlib import import_module
from pathlib import Path

import comfy.utils
import torch
from comfy_inside import BASE, check, comfy, merge_ops, save_file

sys.path.append(str(Path(__file__).parents[1] / "architectures"))

import comfyui_models
import keys
from checks_architectures import file_of, stock_targets
from configs import COMFYUI

Entry = import_module("alloy_pack.merge_ops.formats.header").Entry
LayerIndex = import_module("alloy_pack.merge_ops.formats.layer_index").LayerIndex
Shard = import_module("alloy_pack.merge_ops.formats.shard").Shard


@check
def openclip_is_what_comfyui_converts():
    """Each weight of a text encoder in OpenCLIP's names is the one that ComfyUI's own conversion gives."""
    width, random = 8, torch.Generator().manual_seed(0)
    block = {
        "ln_1.weight": (width,), "ln_1.bias": (width,), "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,), "attn.out_proj.weight": (width, width), "ln_2.weight": (width,),
        "attn.out_proj.bias": (width,), "mlp.c_fc.weight": (32, width), "mlp.c_fc.bias": (32,),
        "mlp.c_proj.weight": (width, 32), "mlp.c_proj.bias": (width,), "ln_2.bias": (width,),
    }  # fmt: skip
    shapes = {f"transformer.resblocks.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    shapes |= {"ln_final.weight": (width,), "ln_final.bias": (width,), "token_embedding.weight": (20, width)}
    shapes |= {"positional_embedding": (5, width), "text_projection": (width, 6)}
    tensors = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    for prefix, part in (
        ("conditioner.embedders.1.model.", "text_encoder_2"),
        ("cond_stage_model.model.", "text_encoder"),
    ):
        file = BASE / "openclip.safetensors"
        save_file({prefix + name: tensor for name, tensor in tensors.items()}, file)
        base = merge_ops.formats.checkpoint.open_base(file)
        converted = comfy.utils.clip_text_transformers_convert(dict(tensors), "", "x.")
        for key, weight in converted.items():
            name = key.removeprefix("x.").removeprefix("transformer.").removesuffix(".weight")
            found = base(f"{part}.{name}")
            assert found is not None and torch.equal(found, weight), (key, found)


for _name in COMFYUI:

    @check
    def the_library_finds_what_stock_comfyui_finds(architecture=_name):
        """In a file of each model, by every spelling: the same rows of the same tensor, swapped alike."""
        model = comfyui_models.empty_model(architecture)
        index = index_of(keys.shapes(architecture, "comfyui"))
        for spelling in keys.spellings(architecture):
            stems = keys.stems(architecture, spelling)
            lora = merge_ops.formats.from_tensors("lora", file_of(spelling, factors_of_one(stems)))
            by_module = {stems[layer.key][0]: (name, layer.key) for name, layer in lora.layers.items()}
            for module, target in stock_targets(model, spelling, stems).items():
                (span,) = index.find(*by_module[module])
                part = target.part and (target.part.start, target.part.length)
                assert f"diffusion_model.{span.entry.name}" == target.key, (spelling.label, module)
                rows = None if span.rows == (0, span.entry.shape[0]) else span.rows
                assert rows == part, (spelling.label, module, span.rows, part)
                assert span.swapped == (target.function is not None), (spelling.label, module)


def factors_of_one(stems):
    return {stem: (torch.zeros(1, 1), torch.zeros(1, 1)) for stem in stems}


def index_of(shapes):
    """The layers of a file of such modules, without data."""
    entries = [Entry(f"{name}.weight", "F16", shape, 0, 0) for name, shape in shapes.items()]
    return LayerIndex([Shard(BASE / "model.safetensors", b"", tuple(entries))])
