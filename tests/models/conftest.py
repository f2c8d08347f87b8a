"""Tiny pipelines of the shapes of SD1.5 and SDXL, and LoRA files for them, made by stock diffusers."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import merge_ops
from tests.models.checkpoints import KOHYA, lora_tensors, whole_checkpoint, write


def _text_config(hidden):
    return CLIPTextConfig(
        vocab_size=1000, hidden_size=hidden, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=0, eos_token_id=2, projection_dim=hidden,
    )  # fmt: skip


def _tokenizer(folder: Path):
    """A real CLIP tokenizer over single letters."""
    letters = [chr(c) for c in range(33, 127)]
    words = ["<|startoftext|>", "<|unk|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    return CLIPTokenizer(*files, unk_token="<|unk|>", model_max_length=77)


def _vae():
    return AutoencoderKL(
        block_out_channels=(32, 64), in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


@pytest.fixture
def sd15(tmp_path):
    """A StableDiffusionPipeline with SD1.5's module names and 1x1 conv projections."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=2, sample_size=16, in_channels=4, out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, attention_head_dim=4,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=_vae(), text_encoder=CLIPTextModel(_text_config(32)), tokenizer=_tokenizer(tmp_path), unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def sdxl(tmp_path):
    """A StableDiffusionXLPipeline with SDXL's module names, linear projections and two text encoders."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=2, sample_size=16, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
        cross_attention_dim=64, attention_head_dim=(2, 4), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 32,
    )  # fmt: skip
    tokenizer = _tokenizer(tmp_path)
    pipe = StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=CLIPTextModel(_text_config(32)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(32)), tokenizer=tokenizer,
        tokenizer_2=tokenizer, unet=unet, scheduler=EulerDiscreteScheduler(),
        force_zeros_for_empty_prompt=True,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def base(tmp_path):
    """A whole checkpoint as a single file."""
    return write(tmp_path / "base.safetensors", whole_checkpoint(), {"modelspec.title": "Base", "n": "1"})


@pytest.fixture
def lora(tmp_path):
    """A LoRA on the denoiser and both text encoders of it."""
    return merge_ops.load(write(tmp_path / "lora.safetensors", lora_tensors(KOHYA, alpha=1)))
