"""Checks of patches in use: hooks, slices of fused weights, cancelling, strengths, files by index."""

import json
import os
import threading
import time
from importlib import import_module
from pathlib import Path

import comfy.hooks
import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy_inside import (
    LORAS,
    assert_close,
    check,
    load_model,
    merge_ops,
    patched,
    run,
    text_of,
    three_loras,
    write_lora,
)
from safetensors.torch import load_file, save_file


def under_hooks(patcher, hooks):
    """The weights while the hooks are on, and after they are off again."""
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    with torch.inference_mode():
        patcher.patch_model(patcher.load_device)
        patcher.register_all_hook_patches(hooks, target)
        patcher.apply_hooks(hooks)
        on = {key: weight.clone() for key, weight in patcher.model.state_dict().items()}
        patcher.apply_hooks(None)
        off = {key: weight.clone() for key, weight in patcher.model.state_dict().items()}
        patcher.unpatch_model(patcher.offload_device)
    return on, off


@check
def hooks_on_a_merged_model():
    """A stock LoRA hook adds to a merged model and leaves it as it was; a hook can hold our merge too."""
    model, _ = load_model("flux")
    rows = three_loras("flux")
    extra = load_file(LORAS / write_lora("flux_hook", "flux", 4, 4, 9))
    ours = run("LoraAlloyLoader", model=model, loras=text_of(rows), method={"method": "ties"})[0]
    merged = patched(ours)
    both = ours.clone()
    both.add_patches(comfy.lora.load_lora(extra, comfy.lora.model_lora_keys_unet(model.model, {})), 0.6)
    on, off = under_hooks(ours.clone(), comfy.hooks.create_hook_lora(extra, 0.6, 0.6))
    assert_close({key: on[key] for key in merged}, patched(both), "hook on", 1e-6)
    assert_close({key: off[key] for key in merged}, merged, "hook off")
    plain = run("LoraAlloyLoader", model=model, loras=text_of(rows), method={"method": "linear"})
    on, _ = under_hooks(model.clone(), comfy.hooks.create_hook_lora(plain[2], 1.0, 1.0))
    assert_close({key: on[key] for key in merged}, patched(plain[0]), "hook of a merge", 1e-5)


def merged_by_nodes(model, loras, chosen):
    """LoRA Stack, Merge Method and Merge LoRAs, with the model to line up by."""
    (method,) = run("LoraAlloyMethod", method=chosen)
    stack = run("LoraAlloyStack", loras=loras)[0]
    return run("LoraAlloyMerge", stack=stack, method=method, model=model)[0]


@check
def slices_meet_the_whole():
    """A LoRA on q, k and v of a fused weight and one on the whole of it are merged row by row."""
    model, _ = load_model("flux")
    key, stem = "diffusion_model.double_blocks.0.img_attn.qkv.weight", "transformer.transformer_blocks.0.attn"
    rows, columns = model.model.state_dict()[key].shape
    third, random = rows // 3, torch.Generator().manual_seed(4)
    whole = torch.randn(rows, 4, generator=random), torch.randn(4, columns, generator=random)
    tensors = {"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": whole[0]}
    tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"] = whole[1]
    save_file(tensors, LORAS / "whole.safetensors")
    parts = {
        f"to_{name}": (torch.randn(third, 2, generator=random), torch.randn(2, columns, generator=random))
        for name in "qk"
    }
    named = {f"{stem}.{name}.lora_B.weight": up for name, (up, _) in parts.items()}
    save_file(
        named | {f"{stem}.{name}.lora_A.weight": down for name, (_, down) in parts.items()},
        LORAS / "parts.safetensors",
    )
    ties = merge_ops.METHODS["ties"].fn
    a = whole[0] @ whole[1]
    expected = torch.empty(rows, columns)
    for i, name in enumerate(("to_q", "to_k", "to_v")):
        piece = slice(i * third, (i + 1) * third)
        there = [a[piece]] + ([parts[name][0] @ parts[name][1]] if name in parts else [])
        weights = torch.tensor([0.5, -0.8][: len(there)])
        expected[piece] = ties(torch.stack(there), weights, density=0.4)
    text = "<lora:whole:0.5>\n<lora:parts:-0.8>"
    for loras in (text, "\n".join(reversed(text.splitlines()))):
        chosen = {"method": "ties", "density": 0.4}
        ours, _, lora, *_ = run("LoraAlloyLoader", model=model, loras=loras, method=chosen)
        change = patched(ours)[key] - model.model.state_dict()[key]
        assert torch.allclose(change, expected, atol=1e-4), (change - expected).abs().max()
        assert {layer.split(".")[-1] for layer in lora.merged.layers} == {"to_q", "to_k", "to_v"}
        for composed in (lora, merged_by_nodes(model, loras, chosen)):
            again = run("LoraAlloyApply", model=model, lora=composed, strength_model=1.0, strength_clip=1.0)[
                0
            ]
            change = patched(again)[key] - model.model.state_dict()[key]
            assert torch.allclose(change, expected, atol=1e-4), (change - expected).abs().max()
    linear = run("LoraAlloyLoader", model=model, loras=text, method={"method": "linear"})[0]
    sums = 0.5 * a
    for i, name in enumerate(parts):
        sums[i * third : (i + 1) * third] += -0.8 * parts[name][0] @ parts[name][1]
    assert torch.allclose(patched(linear)[key] - model.model.state_dict()[key], sums, atol=1e-4)


@check
def cancelling_a_merge():
    """An interruption ends the merge within half a second of work, and the model is as it was."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    before = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    chosen = {"method": "peft", "combination_type": "ties_svd", "density": 0.5}
    pressed = []

    def press():
        pressed.append(time.process_time())
        comfy.model_management.interrupt_current_processing()

    timer = threading.Timer(0.3, press)
    timer.start()
    try:
        run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method=chosen)
    except comfy.model_management.InterruptProcessingException:
        waited = time.process_time() - pressed[0]
    else:
        raise AssertionError("the merge was over before it was interrupted")
    assert waited < 0.5, waited
    assert not model.patches and not clip.patcher.patches
    assert all(torch.equal(weight, before[key]) for key, weight in model.model.state_dict().items())


@check
def a_new_strength_reads_no_file():
    """Another strength works though the file holds nonsense now, of the same size and time."""
    model, _ = load_model("flux")
    path = LORAS / write_lora("kept", "flux", 4, 4, 21)
    changes = []
    for strength in (0.5, 1.0):
        chosen = {"method": "ties", "density": 0.3}
        ours = run("LoraAlloyLoader", model=model, loras=f"<lora:kept:{strength}>", method=chosen)[0]
        base = model.model.state_dict()
        changes.append({key: weight - base[key] for key, weight in patched(ours).items()})
        stat = path.stat()
        path.unlink()  # a new file: what is mapped into memory stays as it was
        path.write_bytes(b"x" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    for key, change in changes[0].items():
        assert torch.allclose(2 * change, changes[1][key], atol=1e-5), key
    path.unlink()


@check
def files_by_index_on_sd15():
    """A pivotal-tuning file on the full SD1.5 UNet: each layer on its own weight, at the right scale."""
    levels = {"num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth_middle": 1}
    depth = {"transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3}
    shared = {"image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True}
    shared |= {"use_temporal_resblock": False, "legacy": False}
    config = comfy.supported_models.SD15(comfy.supported_models.SD15.unet_config | levels | depth | shared)
    config.set_inference_dtype(torch.float32, None)
    device = torch.device("cpu")
    model = comfy.model_patcher.ModelPatcher(config.get_model({}, device="meta"), device, device)
    shapes = {key: weight.shape for key, weight in model.model.state_dict().items()}
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    layers = merge_ops.formats.pti.pti_layers("unet", {})
    tensors, random = {}, torch.Generator().manual_seed(5)
    for i, layer in enumerate(layers):
        rows, columns = shapes["diffusion_model." + names[layer.removeprefix("unet.") + ".weight"]][:2]
        tensors[f"unet:{i}:up"] = torch.randn(rows, 2, generator=random)
        tensors[f"unet:{i}:down"] = torch.randn(2, columns, generator=random)
    save_file(tensors, LORAS / "by_index.safetensors", {"unet": json.dumps(["CrossAttention", "GEGLU"])})
    files = [LORAS / "by_index.safetensors"]
    if "LORA_ALLOY_REAL_LORAS" in os.environ:
        for real in sorted(Path(os.environ["LORA_ALLOY_REAL_LORAS"]).glob("pti_*.safetensors")):
            files.append(LORAS / real.name)
            files[-1].write_bytes(real.read_bytes())
    for file in files:
        lora, chosen = merge_ops.load(file), {"method": "ties", "density": 1.0}
        ours = run("LoraAlloyLoader", model=model, loras=f"<lora:{file.name}:0.5>", method=chosen)[0]
        unet = [layer for layer in lora.layers if layer.startswith("unet.")]
        assert len(ours.patches) == len(unet) == 144, (file.name, len(ours.patches), len(unet))
        for layer in unet[::12]:
            key = "diffusion_model." + names[layer.removeprefix("unet.") + ".weight"]
            ((strength, adapter, _, _, _),) = ours.patches[key]
            weight = torch.zeros(shapes[key])
            change = adapter.calculate_weight(weight, key, strength, 1.0, None, lambda a: a)
            expected = 0.5 * lora.layers[layer].delta().reshape(shapes[key])
            assert torch.allclose(change, expected, atol=1e-6), (file.name, layer)


@check
def a_core_is_patched_as_it_was_solved():
    """With moments of a recording, which the patch does not have: ComfyUI rebuilds it from its tensors."""
    rows = three_loras("flux")
    loras = [merge_ops.load(LORAS / row[0]) for row in rows]
    patch = import_module("alloy_pack.nodes.model.patches.patch")
    align = import_module("alloy_pack.merge_ops.merging.align").align
    request = import_module("alloy_pack.merge_ops.merging.request").Request.of(loras)
    random, moments = torch.Generator().manual_seed(1), {}
    for aligned in align(loras, request):
        rank = sum(aligned.ranks)
        z = torch.randn(len(aligned.parts), rank, 3 * rank, generator=random)
        moments[aligned.name] = z @ z.mT
    merged = merge_ops.merge(loras, [0.7, -0.4, 1.2], "calibrated", scale=2.0, moments=moments)
    linear = merge_ops.merge(loras, [0.7, -0.4, 1.2], scale=2.0)
    for name in merged.layers:
        layer = merged.layer(name)
        packed = patch.MergedAdapter.of(layer, whole=False)
        again = type(packed)(packed.loaded_keys, packed.weights)
        weight = torch.zeros(layer.template.weight_shape)
        again.calculate_weight(weight, name, 0.5, 1.0, None, lambda w: w)
        wanted = merged.delta(name)
        assert torch.allclose(weight, 0.5 * wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max())), name
        assert not torch.allclose(wanted, linear.delta(name), rtol=1e-2)
