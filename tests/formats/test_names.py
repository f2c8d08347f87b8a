"""Every spelling of a layer's name leads to the module's own name, and back."""

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

import merge_ops
from merge_ops.names.spelling import canonical_name, kohya_name

ATTENTION = "down_blocks.0.attentions.1.transformer_blocks.0.attn1"
TEXT = "text_model.encoder.layers.1"


@pytest.mark.parametrize("model", ["unet_shapes", "sdxl_shapes"])
def test_flattened_diffusers_names(model, request):
    shapes = request.getfixturevalue(model)
    assert len(shapes) > 200
    flattened = {f"lora_unet_{name.replace('.', '_')}": f"unet.{name}" for name in shapes}
    assert {stem: canonical_name(stem) for stem in flattened} == flattened


@pytest.mark.parametrize(
    ("prefix", "component"),
    [("lora_te_", "text_encoder"), ("lora_te1_", "text_encoder"), ("lora_te2_", "text_encoder_2")],
)
def test_flattened_text_model_names(prefix, component, text_shapes):
    flattened = {f"{prefix}{name.replace('.', '_')}": f"{component}.{name}" for name in text_shapes}
    assert {stem: canonical_name(stem) for stem in flattened} == flattened
    assert canonical_name("lora_te2_text_projection") == "text_encoder_2.text_projection"


@pytest.mark.parametrize("model", ["unet_shapes", "sdxl_shapes"])
@pytest.mark.parametrize("ldm", [True, False])
def test_kohya_names_round_trip(model, ldm, request):
    names = [f"unet.{name}" for name in request.getfixturevalue(model)]
    spelled = [kohya_name(name, ldm) for name in names]
    assert len(set(spelled)) == len(names)
    assert [canonical_name(stem) for stem in spelled] == names


def test_sgm_names_against_diffusers(sdxl_shapes):
    """Diffusers' own converter takes our SGM spelling of a layer to the same module."""

    class Config:
        layers_per_block = 2

    for name in sdxl_shapes:
        stem = kohya_name(f"unet.{name}", ldm=True)
        assert not any(word in stem for word in ("down_blocks", "mid_block", "up_blocks"))
        file = {f"{stem}.lora_down.weight": torch.zeros(1, 1), f"{stem}.lora_up.weight": torch.zeros(1, 1)}
        mapped = _maybe_map_sgm_blocks_to_diffusers(file, Config)
        converted = _convert_non_diffusers_lora_to_diffusers(mapped)[0]
        peft = convert_unet_state_dict_to_peft(
            {key.removeprefix("unet."): value for key, value in converted.items()}
        )
        assert {key.rsplit(".lora_", 1)[0] for key in peft} == {name}


@pytest.mark.parametrize(
    ("stem", "canonical"),
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
         "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
        ("lora_unet_middle_block_1_proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("lora_unet_output_blocks_5_2_conv", "unet.up_blocks.1.upsamplers.0.conv"),
        ("lora_unet_output_blocks_2_1_conv", "unet.up_blocks.0.upsamplers.0.conv"),
        ("lora_unet_unet_down_blocks_0_attentions_1_proj_in", "unet.down_blocks.0.attentions.1.proj_in"),
        ("lycoris_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q", f"unet.{ATTENTION}.to_q"),
        ("diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_q", f"unet.{ATTENTION}.to_q"),
        ("model.diffusion_model.middle_block.0.in_layers.2", "unet.mid_block.resnets.0.conv1"),
        (f"unet.{ATTENTION}.processor.to_out_lora", f"unet.{ATTENTION}.to_out.0"),
        (f"{ATTENTION}.processor.to_q_lora", f"unet.{ATTENTION}.to_q"),
        (f"base_model.model.{ATTENTION}.to_q", f"unet.{ATTENTION}.to_q"),
        (f"unet.base_model.model.{ATTENTION}.to_q", f"unet.{ATTENTION}.to_q"),
        (f"text_encoder.{TEXT}.self_attn.to_out_lora", f"text_encoder.{TEXT}.self_attn.out_proj"),
        ("text_encoder.encoder.layers.1.mlp.fc1", f"text_encoder.{TEXT}.mlp.fc1"),
        ("diffusion_model.double_blocks.0.img_attn.qkv", "diffusion_model.double_blocks.0.img_attn.qkv"),
        ("transformer.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_q"),
        ("base_model.model.model.layers.3.self_attn.q_proj", "model.layers.3.self_attn.q_proj"),
    ],
)  # fmt: skip
def test_spellings(stem, canonical):
    assert canonical_name(stem) == canonical


@pytest.mark.parametrize(
    ("down", "up", "dialect"),
    [
        (f"unet.{ATTENTION}.processor.to_q_lora.down.weight",
         f"unet.{ATTENTION}.processor.to_q_lora.up.weight", "diffusers-legacy"),
        (f"{ATTENTION}.processor.to_q_lora.down.weight", f"{ATTENTION}.processor.to_q_lora.up.weight",
         "diffusers-legacy"),
        (f"unet.{ATTENTION}.to_q.lora.down.weight", f"unet.{ATTENTION}.to_q.lora.up.weight",
         "diffusers-legacy"),
        (f"unet.{ATTENTION}.to_q.lora_A.weight", f"unet.{ATTENTION}.to_q.lora_B.weight", "diffusers"),
        (f"{ATTENTION}.to_q.lora_A.weight", f"{ATTENTION}.to_q.lora_B.weight", "peft-keys"),
        (f"unet.{ATTENTION}.to_q.lora_A.default.weight", f"unet.{ATTENTION}.to_q.lora_B.default.weight",
         "diffusers"),
        (f"unet.{ATTENTION}.to_q.lora_A", f"unet.{ATTENTION}.to_q.lora_B", "diffusers"),
        ("diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
         "diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_q.lora_B.weight", "generic"),
        ("lora_unet_input_blocks_2_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
         "lora_unet_input_blocks_2_1_transformer_blocks_0_attn1_to_q.lora_up.weight", "kohya"),
    ],
)  # fmt: skip
def test_files_of_every_spelling_hold_the_same_layer(down, up, dialect, write, pair, product, tmp_path):
    """And are written back in their own spelling, or kohya's where we only read it."""
    b, a = pair((12, 10), 3)
    lora = merge_ops.load(write({down: a, up: b}))
    report = merge_ops.save(merge_ops.merge([lora]), tmp_path / "out.safetensors")
    assert report.format == ("diffusers" if dialect in ("diffusers", "peft-keys") else "kohya")
    assert list(lora.layers) == [f"unet.{ATTENTION}.to_q"]
    assert lora.dialect == dialect
    torch.testing.assert_close(lora.layers[f"unet.{ATTENTION}.to_q"].delta(), product(b, a))


def test_text_encoder_linear_layer(write, pair, product):
    up, down = pair((12, 10), 3)
    stem = f"text_encoder.{TEXT}.self_attn.q_proj.lora_linear_layer"
    lora = merge_ops.load(write({f"{stem}.down.weight": down, f"{stem}.up.weight": up}))
    layer = lora.layers[f"text_encoder.{TEXT}.self_attn.q_proj"]
    torch.testing.assert_close(layer.delta(), product(up, down))


def test_doubled_prefix_is_repaired_with_a_warning(write, kohya_tensors):
    stem = "lora_unet_unet_" + ATTENTION.replace(".", "_") + "_to_q"
    lora = merge_ops.load(write(kohya_tensors({stem: (12, 10)})))
    assert list(lora.layers) == [f"unet.{ATTENTION}.to_q"]
    assert "doubled" in lora.warnings[0]


def test_the_dialect_is_that_of_most_keys(write, kohya_tensors):
    stems = {f"lora_unet_mid_block_attentions_0_{name}": (12, 10) for name in ("proj_in", "proj_out")}
    stray = {"a.stray.lora_A.weight": torch.ones(1, 2), "a.stray.lora_B.weight": torch.ones(2, 1)}
    assert merge_ops.load(write(stray | kohya_tensors(stems))).dialect == "kohya"
