"""Words around the names of layers: of compiled and sharded models, and stacked prefixes of trainers."""

import random
import re

import pytest
import torch

import merge_ops
from merge_ops.formats import from_tensors
from merge_ops.names.parts import flat_name
from tests.architectures import keys
from tests.architectures.configs import COMFYUI

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module")
DOTTED = (
    "module.", "base_model.model.", "pipe.", "pipe.dit.", "dit.", "diffusion_model.", "transformer.",
    "model.diffusion_model.", "diffusion_model.model.diffusion_model.", "model.",
)  # fmt: skip
FLAT = ("model_diffusion_model_", "diffusion_model_", "module_", "dit_", "transformer_", "pipe_dit_", "_")
HEADS = ("lora_unet_", "lycoris_", "lora_transformer_", "Hunyuan_video_I2V_lora_", "my_trainer_lora_")
UNETS = ("sd1", "sd2", "sdxl")
TRIES = 8


def some_names(architecture, source, dice):
    """A few layers of the real model, some of them in its blocks."""
    names = sorted(keys.shapes(architecture, source))
    blocks = [name for name in names if re.search(r"(?<!token_refiner\.)(blocks|layers)\.\d+\.", name)]
    known = [name for name in blocks if re.search(r"attn|attention|ffn|mlp|ff\.", name)]
    known = [name for name in known if not name.startswith(("distilled", "txt_in", "context_embedder"))]
    return sorted({*dice.sample(names, 6), *dice.sample(known, 6)})


def with_wrappers(name, mark, dice):
    """The name with words of wrappers between its parts."""
    parts = name.split(".")
    for _ in range(dice.randint(0, 2)):
        parts.insert(dice.randint(0, len(parts)), dice.choice(WRAPPERS))
    return mark.join(parts)


def file_of(stems):
    """A small LoRA on each stem."""
    tensors = {}
    for stem in stems:
        tensors[f"{stem}.lora_down.weight"] = torch.randn(2, 24)
        tensors[f"{stem}.lora_up.weight"] = torch.randn(24, 2)
    return tensors


def prefixes_of(architecture):
    """Dotted prefixes, flat ones and those that flat names begin with; nobody calls a UNet a transformer."""
    if architecture not in UNETS:
        return DOTTED, FLAT, HEADS
    dotted, flat, heads = ([p for p in each if "transformer" not in p] for each in (DOTTED, FLAT, HEADS))
    return [*dotted, "unet.", "unet.unet."], [*flat, "unet_"], heads


@pytest.mark.parametrize("source", ["comfyui", "diffusers"])
@pytest.mark.parametrize("architecture", COMFYUI)
def test_stacked_prefixes_lead_to_the_same_weights(architecture, source):
    """Any words in front of and inside the names of any model: they meet, and are saved without them."""
    dice = random.Random(f"{architecture} {source}")
    for _ in range(TRIES):
        names = some_names(architecture, source, dice)
        plain = from_tensors("plain", file_of(f"diffusion_model.{name}" for name in names))
        dotted, flat, heads = prefixes_of(architecture)
        stack = "".join(dice.choice(dotted) for _ in range(dice.randint(1, 3)))
        if any(name.startswith("blocks.") for name in names):  # "transformer_blocks_0" is LTX-Video's
            flat = [prefix for prefix in flat if prefix != "transformer_"]
            heads = [prefix for prefix in heads if prefix != "lora_transformer_"]
        head = dice.choice(heads) + "".join(dice.choice(flat) for _ in range(dice.randint(0, 2)))
        for stems in (
            [with_wrappers(stack + name, ".", dice) + dice.choice(("", ".")) for name in names],
            [f"{head}{with_wrappers(name, '_', dice)}".replace(".", "_") for name in names],
        ):
            other = from_tensors("other", file_of(stems))
            met = {flat_name(name) for name in other.layers}
            assert met == {flat_name(name) for name in plain.layers}, stems
            merged = merge_ops.merge([plain, other])
            assert len(merged.layers) == len(names), stems
            assert not any(word in name for name in merged.layers for word in WRAPPERS)
