"""Where models lie: one file, or folders of diffusers and transformers; and the names of their layers."""

import json

import pytest
import torch
from safetensors.torch import load_file

import merge_ops
from merge_ops import LoraFormatError
from merge_ops.formats.model_files import open_whole_model
from merge_ops.names.unet import to_ldm
from tests.extracting.weights import random_weights, tuned_from

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
UNET = {
    f"{ATTENTION}.weight": (64, 64),
    f"{CONV}.weight": (32, 32, 3, 3),
    f"{CONV}.bias": (32,),
    "time_embedding.linear_1.weight": (128, 32),
}
TEXT = {
    "text_model.encoder.layers.0.self_attn.q_proj.weight": (96, 96),
    "text_model.final_layer_norm.weight": (96,),
}


def pipeline(write, name, unet, text, second=None):
    write(f"{name}/unet/diffusion_pytorch_model.safetensors", unet)
    write(f"{name}/text_encoder/model.safetensors", text)
    if second:
        write(f"{name}/text_encoder_2/model.safetensors", second)
    folder = write(f"{name}/vae/diffusion_pytorch_model.safetensors", {"x.weight": torch.ones(2, 2)})
    (folder.parents[1] / "model_index.json").write_text("{}")
    return folder.parents[1]


def test_a_pipeline_folder(write):
    """The parts that LoRAs change, under the names of their components; the VAE is none."""
    unet, text = random_weights(UNET), random_weights(TEXT)
    base = pipeline(write, "base", unet, text)
    tuned = pipeline(write, "tuned", tuned_from(unet), tuned_from(text))
    extracted = merge_ops.extract(tuned, base, rank=4)
    assert set(extracted.layers) == {
        f"unet.{ATTENTION}",
        f"unet.{CONV}",
        f"unet.{CONV}.bias",
        "unet.time_embedding.linear_1",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoders.clip_l.transformer.text_model.final_layer_norm",
    }
    assert extracted.found.held > 0.9999 and len(extracted.loras[0].sha256) == 64


def test_a_folder_of_one_part_and_one_file_meet(write):
    """A UNet as diffusers has it, and the same in a checkpoint with the names of its authors."""
    unet = random_weights(UNET)
    tuned = tuned_from(unet)
    folder = write("tuned/diffusion_pytorch_model.safetensors", tuned).parent
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    original = {
        f"model.diffusion_model.{to_ldm(name.rpartition('.')[0])}.{name.rpartition('.')[2]}": weight
        for name, weight in unet.items()
    }
    extracted = merge_ops.extract(folder, write("base.safetensors", original), rank=4)
    assert len(extracted.layers) == len(UNET) and extracted.found.held > 0.9999


def test_shards_are_read_through_their_index_and_a_missing_one_is_named(write):
    unet = random_weights(UNET)
    names = list(unet)
    halves = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
    for file, own in halves.items():
        folder = write(f"unet/{file}", {name: unet[name] for name in own}).parent
    where = {name: file for file, own in halves.items() for name in own}
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    # one of another precision has a longer name
    (folder / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text("{}")
    model = open_whole_model(folder)
    assert len(model.weights) == len(UNET)
    (folder / "b.safetensors").unlink()
    with pytest.raises(LoraFormatError, match=r"unet lacks b.safetensors, which its index lists"):
        open_whole_model(folder)
    index.write_text(json.dumps({"weight_map": {"x": "../b.safetensors"}}))
    with pytest.raises(LoraFormatError, match="which is not a safetensors file"):
        open_whole_model(folder)


def test_the_usual_file_of_a_folder_is_taken_and_two_others_are_refused(write):
    unet = random_weights(UNET)
    folder = write("unet/diffusion_pytorch_model.fp16.safetensors", unet).parent
    write("unet/diffusion_pytorch_model.safetensors", tuned_from(unet))
    ((_, weight), *_) = open_whole_model(folder).weights.items()
    read = weight.open()(0, 64)
    assert any(torch.equal(read, each) for each in tuned_from(unet).values() if each.shape == read.shape)
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(LoraFormatError, match=r"holds 2 \.safetensors files and no index"):
        open_whole_model(folder)


@pytest.mark.parametrize("path", ["missing.safetensors", "missing"])
def test_what_is_not_there_is_said(tmp_path, path):
    with pytest.raises(LoraFormatError, match="there is no file or folder 'missing"):
        open_whole_model(tmp_path / path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoraFormatError, match=r"empty holds no \.safetensors file"):
        open_whole_model(tmp_path / "empty")


def test_openclip_names_of_sdxl(write, tmp_path):
    """Its second text encoder has q, k and v in one tensor; LoRAs have a layer for each."""
    block = "conditioner.embedders.1.model.transformer.resblocks.3"
    unet = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    shapes = {
        unet: (64, 2048),
        "model.diffusion_model.label_emb.0.0.weight": (64, 48),
        f"{block}.attn.in_proj_weight": (96, 32),
        f"{block}.attn.in_proj_bias": (96,),
        f"{block}.attn.out_proj.weight": (32, 32),
        f"{block}.mlp.c_fc.weight": (128, 32),
        f"{block}.ln_1.weight": (32,),
        "conditioner.embedders.1.model.text_projection": (32, 48),
        "conditioner.embedders.1.model.positional_embedding": (77, 32),
        "conditioner.embedders.1.model.logit_scale": (),
    }
    base = random_weights(shapes)
    tuned = {name: weight + torch.randn_like(weight) * 0.01 for name, weight in base.items()}
    paths = write("tuned.safetensors", tuned), write("base.safetensors", base)
    extracted = merge_ops.extract(*paths, energy=1.0)
    layer = "text_encoder_2.text_model.encoder.layers.3"
    change = {name: tuned[name] - base[name] for name in base}
    rows = change[f"{block}.attn.in_proj_weight"]
    for number, part in enumerate("qkv"):
        expected = rows[32 * number : 32 * number + 32]
        torch.testing.assert_close(
            extracted.delta(f"{layer}.self_attn.{part}_proj"), expected, atol=1e-6, rtol=0
        )
    torch.testing.assert_close(
        extracted.delta("text_encoders.clip_g.transformer.text_projection"),
        change["conditioner.embedders.1.model.text_projection"].T,
        atol=1e-6,
        rtol=0,
    )
    merge_ops.save(extracted, tmp_path / "x.safetensors", dtype=torch.float32)
    keys = set(load_file(tmp_path / "x.safetensors"))
    stem = "lora_te2_text_model_encoder_layers_3"
    assert {f"{stem}_self_attn_k_proj.diff_b", f"{stem}_mlp_fc1.lora_up.weight"} <= keys
    # the names of SDXL's authors, as trainers write them for its LoRAs
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight" in keys
    assert "text_encoders.clip_g.transformer.text_model.encoder.layers.3.layer_norm1.diff" in keys


def test_wrappers_and_prefixes_in_front_of_names(write):
    """torch.compile and trainers leave words in names; the weights are the same."""
    names = ("double_blocks.0.img_attn.qkv.weight", "double_blocks.0.img_attn.proj.weight")
    base = {name: torch.randn(96, 48) for name in names}
    for prefix in ("model.diffusion_model.", "diffusion_model.", "module._orig_mod.", "_orig_mod.", "model."):
        tuned = {prefix + name: weight + 1 for name, weight in base.items()}
        paths = write("tuned.safetensors", tuned), write("base.safetensors", base)
        assert set(merge_ops.extract(*paths, rank=1).layers) == {
            f"diffusion_model.{name.removesuffix('.weight')}" for name in names
        }


def test_one_weight_under_two_names_is_refused(write):
    weight = torch.randn(32, 32)
    path = write("twice.safetensors", {"a._orig_mod.b.weight": weight, "a.b.weight": weight + 1})
    with pytest.raises(LoraFormatError, match=r"twice.safetensors has a.b twice"):
        open_whole_model(path)


def test_what_a_checkpoint_says_of_its_use_goes_into_the_lora(sd1, write, tmp_path):
    tuned = load_file(sd1[0])
    said = {"modelspec.license": "CC0", "modelspec.trigger_phrase": "ink", "modelspec.title": "Whole model"}
    path = write("said.safetensors", tuned, said)
    merge_ops.save(merge_ops.extract(path, sd1[1], rank=2), tmp_path / "x.safetensors")
    metadata = merge_ops.load(tmp_path / "x.safetensors").metadata
    assert metadata["modelspec.license"] == "CC0" and metadata["modelspec.trigger_phrase"] == "ink"
    assert metadata["modelspec.title"] == "x"
