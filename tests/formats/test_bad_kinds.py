"""Files of other kinds of models, and settings that hide a mistake: what each is, is said."""

import json
import struct

import numpy
import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from merge_ops import LoraFormatError, MergeError
from merge_ops.formats.container import read_container
from tests.laws import merge

STEM = "lora_unet_mid_block_attentions_0_proj_in"
GOOD = {
    f"{STEM}.lora_up.weight": torch.ones(6, 2),
    f"{STEM}.lora_down.weight": torch.ones(2, 5),
    f"{STEM}.alpha": torch.tensor(1.0),
}
KINDS = {
    "a ControlNet-LoRA": ["lora_controlnet", "input_blocks.0.0.up", "input_blocks.0.0.down"],
    "an IP-Adapter": ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight", "ip_adapter.1.to_v_ip.weight"],
    "a textual-inversion embedding": ["emb_params"],
    "a textual-inversion embedding of SDXL": ["clip_l", "clip_g"],
    "holds whole weights of a model": [
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.encoder.conv_in.bias",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
    ],
    "holds whole weights of a model of diffusers": ["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"],
    "holds whole weights of a model like Flux": ["double_blocks.0.img_attn.qkv.weight", "img_in.weight"],
    "a textual-inversion embedding of a bundle": ["bundle_emb.cat.clip_l", "bundle_emb.cat.clip_g"],
    "an adapter of MLX": ["model.layers.0.self_attn.q_proj.lora_a", "model.layers.0.self_attn.q_proj.lora_b"],
    "an adapter of torchtune": ["layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"],
    "a LoRA of Nunchaku": [f"transformer_blocks.0.qkv_proj.lora_{half}" for half in ("down", "up")],
    "quantised weights .of Nunchaku": ["transformer_blocks.0.qkv_proj.qweight", "blocks.0.qkv.wscales"],
    "an adapter of NeMo": ["decoder.layers.0.self_attention.linear_qkv.adapter.linear_in.weight"],
    "a ControlNet-LLLite": ["lllite_unet_input_blocks_4_1_attn1_to_q.down.0.weight"],
    "a ControlNet, not": ["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"],
    "a PhotoMaker": ["id_encoder.visual_projection.weight", "lora_weights.unet.x.lora_A.weight"],
    "a Redux": ["redux_up.weight", "redux_down.weight"],
    "a motion module of AnimateDiff": ["down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"],
    "PEFT adapter of the kind VeRA": ["base_model.model.q.vera_lambda_b", "base_model.model.q.vera_lambda_d"],
    "PEFT adapter of the kind HRA": ["base_model.model.q.hra_u"],
    "PEFT adapter of the kind prompt tuning": ["prompt_embeddings"],
    "is quantised": [f"{STEM}.lora_up.weight", f"{STEM}.lora_up.weight.quant_state.bitsandbytes__nf4"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_files_are_named(kind, write):
    """Before their data is read: a checkpoint may be larger than memory."""
    path = write({key: torch.ones(2, 2) for key in KINDS[kind]})
    named = kind if "adapter" in kind or "unchaku" in kind else kind.partition(" of ")[0]
    with pytest.raises(LoraFormatError, match=f"some.safetensors: .*{named}.*[,;]"):
        merge_ops.load(path)


def test_an_embedding_bundled_with_a_lora_is_named(write):
    """OneTrainer and SwarmUI write both into one file."""
    lora = merge_ops.load(write(GOOD | {"bundle_emb.cat.clip_l": torch.ones(2, 8)}))
    assert "bundled" in lora.unmerged["bundle_emb.cat.clip_l"]
    assert len(lora.layers) == 1


@pytest.mark.parametrize("start", [b"ggla", b"algg"])
def test_adapters_of_early_llama_cpp(start, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(start + bytes(60))
    with pytest.raises(LoraFormatError, match=r"x\.safetensors: .*llama\.cpp"):
        merge_ops.load(tmp_path / "x.safetensors")


def test_archives_of_numpy(tmp_path):
    """MLX wrote adapters.npz before it wrote safetensors."""
    numpy.savez(tmp_path / "adapters.npz", **{"x.lora_a": numpy.ones((2, 2))})
    with pytest.raises(LoraFormatError, match=r"adapters\.npz: this is a NumPy archive"):
        merge_ops.load(tmp_path / "adapters.npz")


def test_a_folder_of_mlx(tmp_path):
    (tmp_path / "adapters.safetensors").touch()
    (tmp_path / "adapter_config.json").write_text(
        '{"fine_tune_type": "lora", "lora_parameters": {"rank": 8}}'
    )
    with pytest.raises(LoraFormatError, match=rf"{tmp_path.name}: this is an adapter of MLX"):
        merge_ops.load(tmp_path)


def test_gguf(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(
        LoraFormatError, match=r"x.safetensors: this is a GGUF file; quantised adapters are not supported"
    ):
        merge_ops.load(path)


def test_adapters_are_not_taken_for_other_kinds(write):
    """Spellings that begin as checkpoints do."""
    for keys in (
        ["diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"],
        ["down_blocks.0.attentions.0.a1.weight", "down_blocks.0.attentions.0.b1.weight"],
        ["transformer_blocks.0.attn.to_q.hada_w1_a"],
        ["text_model.encoder.layers.0.mlp.fc1.lokr_w1"],
        ["double_blocks.0.img_attn.proj.w_norm"],
        ["model.diffusion_model.input_blocks.1.1.proj_in.diff"],
    ):
        read_container(write({key: torch.ones(2, 2) for key in keys}))


@pytest.mark.parametrize(
    "name", ["two\\nlines", "\\u001b[31mred", "a\\u0000b", "\\u202etxet", "x" * 1100, "\\ud800"]
)
def test_names_that_would_spoil_a_message(name, tmp_path):
    """Control characters, which no model has in its names, end lines and colour terminals."""
    raw = f'{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}'.encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"x")
    with pytest.raises(LoraFormatError, match=r"x.safetensors: this is not a") as caught:
        merge_ops.load(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_one_name_twice(tmp_path):
    """JSON would keep the last one."""
    part = b'"a.alpha":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    raw = b"{%s,%s}" % (part, part)
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    with pytest.raises(LoraFormatError, match=r"its header lists 'a.alpha' twice"):
        merge_ops.load(path)


@pytest.mark.parametrize("alpha", [0.0, -2.0, 1e6])
def test_alphas_that_are_odd_and_legal(alpha, write):
    lora = merge_ops.load(write(GOOD | {f"{STEM}.alpha": torch.tensor(alpha)}))
    assert [layer.scale for layer in lora.layers.values()] == [alpha / 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", sorted(merge_ops.METHODS))
def test_a_lora_without_effect(method, dtype, write):
    """As it is before training: methods that divide by norms survive it, and so does saving."""
    path = write(GOOD | {f"{STEM}.lora_up.weight": torch.zeros(6, 2), f"{STEM}.alpha": torch.tensor(2.0)})
    zero = merge_ops.load(path)
    merged = merge([zero, zero], [0.5, 0.5], method)
    report = merge_ops.save(merged, path.with_name("out.safetensors"), dtype=dtype)
    assert report.total_error == 0
    for layer in merge_ops.load(path.with_name("out.safetensors")).layers.values():
        assert not layer.delta().any()


def test_one_file_twice_and_weights_that_sum_to_zero(write):
    lora = merge_ops.load(write(GOOD))
    (name,) = lora.layers
    twice = merge_ops.merge([lora, lora], [0.25, 0.75])
    assert torch.allclose(twice.delta(name), lora.layers[name].delta())
    nothing = merge_ops.merge([lora, lora], [1.0, -1.0]).delta(name)  # but for the processor's rounding
    assert nothing.abs().max() < 1e-6 * lora.layers[name].delta().abs().max()
    assert torch.allclose(merge_ops.merge([lora], [1.0]).delta(name), lora.layers[name].delta())


def test_too_large_for_half_precision(write, tmp_path):
    lora = merge_ops.load(write(GOOD | {f"{STEM}.alpha": torch.tensor(1e20)}))
    merged = merge_ops.merge([lora], [1.0], "ties", density=1.0)
    with pytest.raises(MergeError, match=r"float16|dtype=torch.float32"):
        merge_ops.save(merged, tmp_path / "out.safetensors", dtype=torch.float16)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_rank_that_contradicts_the_shapes(tmp_path):
    """The shapes say the rank, the configuration says alpha."""
    tensors = {f"base_model.model.q.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 64, "lora_alpha": 8}))
    assert merge_ops.load(tmp_path).layers["q"].scale == 2.0
