"""Tiny real models with the module names of SD1.5, SDXL and CLIP, and LoRA files for them."""

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

import merge_ops

_PROBE = Path(__file__).with_name("comfyui_probe.py")


def sd15_unet():
    """All of SD1.5's blocks at a tenth of its width."""
    return UNet2DConditionModel(
        block_out_channels=(32, 32, 64, 64), layers_per_block=2, cross_attention_dim=16, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )  # fmt: skip


def sdxl_unet():
    """All of SDXL's blocks, with fewer transformer blocks in each."""
    return UNet2DConditionModel(
        block_out_channels=(32, 64, 128), layers_per_block=2, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3), attention_head_dim=(2, 2, 4), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
    )  # fmt: skip


def clip():
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, projection_dim=16,
        )
    )  # fmt: skip


def weight_shapes(model) -> dict[str, tuple[int, ...]]:
    """Module name to weight shape, for every linear layer and convolution."""
    kinds = torch.nn.Linear, torch.nn.Conv2d
    return {name: tuple(m.weight.shape) for name, m in model.named_modules() if isinstance(m, kinds)}


@pytest.fixture(scope="session")
def unet_shapes():
    with torch.device("meta"):
        return weight_shapes(sd15_unet())


@pytest.fixture(scope="session")
def sdxl_shapes():
    with torch.device("meta"):
        return weight_shapes(sdxl_unet())


@pytest.fixture(scope="session")
def text_shapes():
    """Of a CLIP text model, with the prefix that transformers dropped in 5.6 and that files still have."""
    with torch.device("meta"):
        found = weight_shapes(clip())
    return {f"text_model.{name.removeprefix('text_model.')}": shape for name, shape in found.items()}


@pytest.fixture(scope="session")
def make_pipe() -> Callable[[], StableDiffusionPipeline]:
    def make():
        return StableDiffusionPipeline(
            unet=sd15_unet(), text_encoder=clip(), vae=None, tokenizer=None, scheduler=None,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def pair():
    """Random ``(up, down)`` in the shapes of a file, for a weight of the given shape."""

    def make(shape, rank, seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        ones = (1,) * (len(shape) - 2)
        down = torch.randn(rank, *shape[1:], generator=generator) / math.prod(shape[1:]) ** 0.5
        up = torch.randn(shape[0], rank, *ones, generator=generator)
        return up.to(dtype), down.to(dtype)

    return make


@pytest.fixture(scope="session")
def product():
    """The delta of a pair, computed in float64 and folded back into the weight's shape."""

    def multiply(up, down, scale=1.0):
        matrix = scale * up.double().flatten(1) @ down.double().flatten(1)
        return matrix.reshape(up.shape[0], *down.shape[1:]).float()

    return multiply


@pytest.fixture
def write(tmp_path):
    """Writes tensors to a safetensors file and returns its path."""

    def to_file(tensors, metadata=None, name="some.safetensors"):
        path = tmp_path / name
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
        return path

    return to_file


@pytest.fixture(scope="session")
def kohya_tensors(pair):
    """Tensors of a kohya file: ``{stem: shape}`` at a rank, or at ``ranks[i % len]`` for the i-th layer."""

    def make(shapes, ranks=(4,), alpha=None, seed=0, dtype=torch.float32):
        tensors = {}
        for i, (stem, shape) in enumerate(shapes.items()):
            rank = ranks[i % len(ranks)]
            up, down = pair(shape, rank, seed * 10_000 + i, dtype)
            tensors |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
            if alpha is not None:
                tensors[f"{stem}.alpha"] = torch.tensor(float(alpha))
        return tensors

    return make


@pytest.fixture(scope="session")
def sd15_files(tmp_path_factory, kohya_tensors, unet_shapes, text_shapes):
    """Two kohya files: every layer at ranks 2 and 3 with alpha 1.5; attention layers only at rank 4."""
    folder = tmp_path_factory.mktemp("sd15")
    stems = {f"lora_unet_{name.replace('.', '_')}": shape for name, shape in unet_shapes.items()}
    stems |= {f"lora_te_{name.replace('.', '_')}": shape for name, shape in text_shapes.items()}
    save_file(kohya_tensors(stems, (2, 3), 1.5, seed=1), folder / "all.safetensors", {"ss_v2": "False"})
    attention = {stem: shape for stem, shape in stems.items() if "attn" in stem}
    save_file(kohya_tensors(attention, (4,), 4.0, seed=2), folder / "attention.safetensors")
    return folder / "all.safetensors", folder / "attention.safetensors"


@pytest.fixture(scope="session")
def adapter_deltas():
    """Module name to the delta that PEFT would add, of every LoRA layer of a model."""

    def collect(model, adapter="default"):
        layers = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
        return {name: m.get_delta_weight(adapter).detach() for name, m in layers.items()}

    return collect


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory, comfyui_python, comfyui_env):
    """Asks a real ComfyUI, in its own interpreter; one call answers everything, since it starts slowly."""
    root, python = comfyui_python

    def ask(*files: Path):
        out = tmp_path_factory.mktemp("comfyui")
        command = [str(python), str(_PROBE), str(root), str(out), *map(str, files)]
        ran = subprocess.run(
            command, cwd=root, env=comfyui_env, capture_output=True, text=True, timeout=600, check=False
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        return out, json.loads((out / "names.json").read_text())

    return ask


@pytest.fixture
def scales(write):
    """Writes a file and returns the scales of its layers in the order of their names, and its warnings."""

    def read(tensors, metadata):
        lora = merge_ops.load(write(tensors, metadata))
        return [layer.scale for _, layer in sorted(lora.layers.items())], lora.warnings

    return read
