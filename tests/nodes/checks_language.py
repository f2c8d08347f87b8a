"""Checks of PEFT's adapters on language models that ComfyUI holds as CLIP: the weights are those of PEFT."""

import importlib.util
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from comfy_inside import (
    BASE,
    NODES,
    assert_close,
    check,
    folder_paths,
    load_model,
    merge_ops,
    patched,
    run,
    write_lora,
)
from safetensors.torch import load_file, save_file

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny_language_model.py"))
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)
read_key_maps = import_module("alloy_pack.nodes.model.places.key_maps").read_key_maps

ENCODERS = {
    "qwen3": "qwen3_06b", "qwen25": "qwen25_3b", "llama": "llama", "gemma2": "gemma2_2b", "t5": "t5xxl",
}  # fmt: skip
BOTH = "<lora:{0}_a:0.7:0.4>\n<lora:{0}_b:-0.5:0.9>"


def load(name):
    """The CLIP of a tiny model; two of them hold CLIP-L beside it, as in the pipelines that use them."""
    beside = ["clip_l.safetensors"] if name in ("t5", "llama") else []
    return tiny.load(f"{name}.safetensors", *beside)


def merged_by_peft(name):
    found = load_file(BASE / "language" / f"{name}.safetensors")
    keys = {key: f"{ENCODERS[name]}.transformer.{key}" for key in found if key != "lm_head.weight"}
    keys.pop("encoder.embed_tokens.weight", None)
    return {new: found[key] for key, new in keys.items()}


def merge(lines, **inputs):
    stack, *_ = run("LoraAlloyStack", loras=lines)
    return run("LoraAlloyMerge", stack=stack, **inputs)[0]


def refusal(function):
    try:
        function()
    except merge_ops.errors.MergeError as error:
        return str(error)
    raise AssertionError("it was accepted")


for _name in ENCODERS:

    @check
    def language_models_are_peft_s(name=_name):
        """PEFT folders at their clip strengths, CLIP connected to the merge or only to what applies it."""
        clip, wanted = load(name), merged_by_peft(name)
        for connected in ({"clip": clip}, {}):
            lora = merge(BOTH.format(name), **connected)
            applied = run("LoraAlloyApply", lora=lora, strength_model=1.0, strength_clip=1.0, clip=clip)[1]
            assert_close(patched(applied.patcher), wanted, name, 1e-5)
            nothing = run("LoraAlloyApply", lora=lora, strength_model=1.0, strength_clip=0.0, clip=clip)[1]
            assert not nothing.patcher.patches


@check
def language_model_saves_as_a_folder():
    """Format auto is a PEFT folder that is listed and gives the same weights; kohya suits Load LoRA."""
    folder_paths.add_model_folder_path("loras", str(BASE / "output" / "loras"))  # as main.py does
    clip, wanted = load("qwen25"), merged_by_peft("qwen25")
    for connected in ({"clip": clip}, {}):
        lora = merge(BOTH.format("qwen25"), **connected)
        path = (
            NODES["LoraAlloySave"].execute(lora=lora, filename_prefix="loras/lm", dtype="float32").result[0]
        )
        folder = BASE / "output" / path
        assert sorted(p.name for p in folder.iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        folder_paths.filename_list_cache.clear()
        listed = folder_paths.get_filename_list("loras")
        assert f"{folder.name}/adapter_model.safetensors" in [name.replace("\\", "/") for name in listed]
        keys = load_file(folder / "adapter_model.safetensors")
        assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in keys
        applied = run("LoraAlloyApply", lora=merge(f"<lora:{folder.name}>"), strength_model=1.0,
                      strength_clip=1.0, clip=clip)[1]  # fmt: skip
        assert_close(patched(applied.patcher), wanted, "saved", 1e-4)
        path = (
            NODES["LoraAlloySave"]
            .execute(lora=lora, filename_prefix="loras/lm_k", dtype="float32", format="kohya")
            .result[0]
        )
        stock = tiny.comfy.sd.load_lora_for_models(None, clip, load_file(BASE / "output" / path), 1.0, 1.0)[1]
        assert_close(patched(stock.patcher), wanted, "stock", 1e-4)


@check
def language_model_of_other_shapes_is_refused():
    """An adapter of another size, of another architecture, without CLIP, and one that fits two encoders."""
    qwen, flux = load("qwen25"), load("t5")
    said = refusal(lambda: merge("<lora:qwen25_a>", clip=flux))
    assert "qwen25_a does not fit a CLIP of" in said and "t5xxl" in said, said
    file = BASE / "models" / "loras" / "narrow.safetensors"
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    save_file({f"{stem}A.weight": torch.ones(2, 32), f"{stem}B.weight": torch.ones(256, 2)}, file)
    folder_paths.filename_list_cache.clear()
    said = refusal(lambda: merge("<lora:narrow>", clip=qwen))
    assert "(256, 32)" in said and "another base model" in said, said
    maps = read_key_maps(None, qwen)
    twice = replace(maps, encoders=maps.encoders | {"another": maps.encoders["qwen25_3b"]})
    lora = merge_ops.load(BASE / "models" / "loras" / "qwen25_a")
    said = refusal(lambda: twice.find_targets(lora.layers, lora.name))
    assert "qwen25_a fits qwen25_3b and another of this CLIP alike" in said, said


@check
def language_model_blocks_hold():
    """Block strengths by the words of language models and of text encoders."""
    clip = load("qwen25")
    for blocks in ("blocks.0:0", "te.0:0"):
        lora = merge(f"<lora:qwen25_a:1:1:blocks={blocks}>", clip=clip)
        applied = run("LoraAlloyApply", lora=lora, strength_model=1.0, strength_clip=1.0, clip=clip)[1]
        layers = {key.split(".layers.")[1][0] for key in applied.patcher.patches}
        assert layers == {"1", "2", "3"}, (blocks, layers)


@check
def language_model_with_fused_weights():
    """q, k and v of a PEFT adapter land on the rows of a fused weight."""
    clip, plain = load("qwen25"), merged_by_peft("qwen25")
    for layer in clip.cond_stage_model.qwen25_3b.transformer.model.layers:
        fuse(layer)
    lora = merge(BOTH.format("qwen25"), clip=clip)
    applied = run("LoraAlloyApply", lora=lora, strength_model=1.0, strength_clip=1.0, clip=clip)[1]
    found = patched(applied.patcher)
    for i in range(4):
        start = f"qwen25_3b.transformer.model.layers.{i}."
        for whole, parts in (
            ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            wanted = torch.cat([plain[f"{start}{part}.weight"] for part in parts])
            assert torch.allclose(found[f"{start}{whole}.weight"].float(), wanted, atol=1e-5), whole


def fuse(layer):
    """Make a block as ComfyUI makes it for a checkpoint with fused weights."""
    for owner, name, parts in (
        (layer.self_attn, "qkv", ("q_proj", "k_proj", "v_proj")),
        (layer.mlp, "gate_up", ("gate_proj", "up_proj")),
    ):
        linears = [getattr(owner, part) for part in parts]
        whole = torch.nn.Linear(
            linears[0].in_features, sum(part.out_features for part in linears), bias=False
        )
        whole.weight = torch.nn.Parameter(torch.cat([part.weight for part in linears]), requires_grad=False)
        setattr(owner, f"{name}_proj", whole)
        for part in parts:
            delattr(owner, part)
    layer.self_attn.merged_qkv = layer.mlp.merged_mlp = True


@check
def language_model_under_other_names():
    """The names of other classes of transformers, in a file: the same weights; the clip strength holds."""
    clip, loras = load("qwen25"), BASE / "models" / "loras"
    wanted = weights_with(merge("<lora:qwen25_a:0:0.6>", clip=clip), clip)
    tensors = load_file(loras / "qwen25_a" / "adapter_model.safetensors")
    for start in ("", "model.language_model.", "language_model.model."):
        renamed = {key.replace("base_model.model.model.", f"base_model.model.{start}"): tensor
                   for key, tensor in tensors.items()}  # fmt: skip
        save_file(renamed, loras / "renamed.safetensors")
        folder_paths.filename_list_cache.clear()
        lora = merge("<lora:renamed:0:1.2>", clip=clip)  # without a configuration alpha is the rank, not 8
        assert_close(weights_with(lora, clip), wanted, start, 1e-6)


@check
def language_model_beside_an_image_model():
    """One list for both; without CLIP the adapter is refused."""
    model, clip = load_model("wan")[0], load("qwen25")
    lines = f"<lora:{write_lora('beside', 'wan', 4, 4, 5)}:1:0>\n<lora:qwen25_a:0.3:0.6>"
    chosen = {"loras": lines, "method": {"method": "linear"}}
    new_model, new_clip, *_ = run("LoraAlloyLoader", model=model, clip=clip, **chosen)
    alone = weights_with(merge("<lora:qwen25_a:0:0.6>", clip=clip), clip)
    assert_close(patched(new_clip.patcher), alone, "beside", 1e-6)
    assert new_model.patches
    said = refusal(lambda: merge("<lora:qwen25_a>", model=model))
    assert "changes only the text encoder; connect CLIP" in said, said


def weights_with(lora, clip):
    applied = run("LoraAlloyApply", lora=lora, strength_model=1.0, strength_clip=1.0, clip=clip)[1]
    return patched(applied.patcher)
