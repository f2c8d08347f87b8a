"""Checks of every architecture at its real size, without weights: each spelling finds the right weight.

What a spelling means is what stock ComfyUI's loader makes of it, where it knows it. Counts are left in the
base folder for ``docs/architectures.md``.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import comfy.lora_convert
import comfy.model_patcher
import torch
from comfy_inside import BASE, check, comfy, merge_ops

sys.path.append(str(Path(__file__).parents[1] / "architectures"))

import comfyui_models
import keys
from configs import COMFYUI

fit_to_model = import_module("alloy_pack.nodes.model.places.fitting").fit_to_model
read_key_maps = import_module("alloy_pack.nodes.model.places.key_maps").read_key_maps
Target = import_module("alloy_pack.nodes.model.target").Target


def file_of(spelling, factors):
    """A state dict in one spelling, from ``{stem: (up, down)}``; half the strength is in alpha."""
    tensors = {}
    for stem, (up, down) in factors.items():
        tensors[f"{stem}{spelling.up}"] = up * 2 if spelling.alpha else up
        tensors[f"{stem}{spelling.down}"] = down
        if spelling.alpha:
            tensors[f"{stem}.alpha"] = torch.tensor(0.5 * down.shape[0])
    return tensors


def factors_of(shapes, seed):
    """Random factors of rank 1 for every module."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: tuple(torch.randn(size, generator=random) for size in keys.sizes(shape, 1))
        for name, shape in shapes.items()
    }


def stock_targets(model, spelling, stems):
    """Module -> target in stock ComfyUI, for the modules that its own loader finds in a file."""
    own = {}
    for i, stem in enumerate(stems):  # the alpha tells which module an adapter came from
        own[f"{stem}{spelling.up}"] = torch.zeros(1, 1)
        own[f"{stem}{spelling.down}"] = torch.full((1, 1), float(i))
    patches = comfy.lora.load_lora(
        comfy.lora_convert.convert_lora(own), comfy.lora.model_lora_keys_unet(model, {}), log_missing=False
    )
    names, weights = [module for module, _ in stems.values()], model.state_dict()
    return {
        names[int(adapter.weights[1])]: Target.from_comfyui(key)
        for key, adapter in patches.items()
        if Target.from_comfyui(key).key in weights
    }


def part_of(pair, target):
    """The factors that a module with this target has, where the whole weight has ``pair``."""
    up, down = pair
    if target.part is not None:
        up = up.narrow(0, target.part.start, target.part.length)
    if target.function is not None:  # it turns the module's delta into that of the weight
        order = target.function(torch.arange(up.shape[0])[:, None])[:, 0]
        up = up[torch.argsort(order)]
    return up, down


def rows_of(target, rows):
    if target.part is None:
        return slice(0, rows)
    return slice(target.part.start, target.part.start + target.part.length)


def assert_meets(name, patcher, whole, other, covered):
    """With a file in ComfyUI's names, a file of another spelling lies on the same layers, rows alike."""
    fitted = fit_to_model([merge_ops.formats.from_tensors("whole", whole[0]), other], patcher, None)
    assert not fitted.apart and not fitted.missing, (name, fitted.apart, fitted.missing)
    reference, same = fitted.loras
    assert same.layers.keys() <= reference.layers.keys(), name
    assert {fitted.unet[layer] for layer in same.layers} >= {t for t in covered if t.is_whole}, name
    for layer, found in same.layers.items():
        target = fitted.unet[layer]
        pair = whole[1][target.key.removeprefix("diffusion_model.").removesuffix(".weight")]
        up, down = (factor.flatten(1) for factor in pair)
        probe = torch.linspace(-1, 1, down.shape[1])
        wanted = up[rows_of(target, up.shape[0])] @ (down @ probe)
        got = found.scale * (found.up @ (found.down.flatten(1) @ probe))
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4), (name, layer)


for _name in COMFYUI:

    @check
    def spellings_meet(architecture=_name):
        """Every module in every spelling is found, where stock ComfyUI finds it and where it does not."""
        model = comfyui_models.empty_model(architecture)
        listed = keys.shapes(architecture, "comfyui")
        assert comfyui_models.modules(model) == listed, "modules.json: python -m tests.architectures"
        cpu = torch.device("cpu")
        patcher = comfy.model_patcher.ModelPatcher(model, cpu, cpu)
        maps, original = read_key_maps(patcher, None), factors_of(listed, 1)
        generic = {f"diffusion_model.{name}": pair for name, pair in original.items()}
        whole = file_of(keys.Spelling("", "", str), generic), original
        counts = {}
        for spelling in keys.spellings(architecture):
            stems = keys.stems(architecture, spelling)
            stock = stock_targets(model, spelling, stems)
            shapes = {stem: shape for stem, (_, shape) in stems.items()}
            lora = merge_ops.formats.from_tensors("plain", file_of(spelling, factors_of(shapes, 2)))
            assert len(lora.layers) == len(stems), spelling.label
            by_layer = {
                layer: next(s for s in stems if s == found.key) for layer, found in lora.layers.items()
            }
            ours = {
                stems[by_layer[layer]][0]: target for layer, target in maps.find_targets(lora.layers).items()
            }
            for module, target in stock.items():
                assert ours[module].key == target.key, (spelling.label, module)
                assert target.is_whole or ours[module].part == target.part, (spelling.label, module)
            counts[spelling.label] = {"modules": len(stems), "stock": len(stock), "ours": len(ours)}
            factors = {
                stem: part_of(
                    original[ours[m].key.removeprefix("diffusion_model.")[: -len(".weight")]], ours[m]
                )
                for stem, (m, _) in stems.items()
                if m in ours
            }
            other = merge_ops.formats.from_tensors("other", file_of(spelling, factors))
            assert_meets(spelling.label, patcher, whole, other, set(ours.values()))
        folder = BASE / "architectures"
        folder.mkdir(exist_ok=True)
        (folder / f"{architecture}.json").write_text(json.dumps(counts))
