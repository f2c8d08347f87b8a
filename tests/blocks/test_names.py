"""What names of layers say: the same in every spelling of a layer."""

import pytest
import torch

from merge_ops.blocks import PRESETS, BlockStrengths
from merge_ops.blocks.names import facts_of
from merge_ops.blocks.presets import VECTORS
from merge_ops.names.spelling import canonical_name, kohya_name
from merge_ops.names.unet import to_ldm

RESNET = ("norm1", "conv1", "norm2", "conv2", "time_emb_proj", "conv_shortcut")
ATTENTION = ("norm", "proj_in", "proj_out")
INNER = (
    "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0", "norm1",
    "norm3", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip


def unet_paths(depths_down, depths_up, depth_mid):
    """Diffusers' names of all layers of a UNet with two residual blocks a level."""
    paths = ["conv_in", "conv_norm_out", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"]
    paths += [f"mid_block.resnets.{i}.{part}" for i in (0, 1) for part in RESNET[:5]]
    transformers = {"mid_block.attentions.0": depth_mid}
    for side, depths, count in (("down", depths_down, 2), ("up", depths_up, 3)):
        for level, depth in enumerate(depths):
            block = f"{side}_blocks.{level}"
            paths += [f"{block}.resnets.{i}.{part}" for i in range(count) for part in RESNET]
            transformers |= {f"{block}.attentions.{i}": depth for i in range(count) if depth}
            if level < len(depths) - 1:
                paths.append(f"{block}.{side}samplers.0.conv")
    for name, depth in transformers.items():
        paths += [f"{name}.{part}" for part in ATTENTION]
        paths += [f"{name}.transformer_blocks.{i}.{part}" for i in range(depth) for part in INNER]
    return paths


UNETS = {"sdxl": unet_paths((0, 2, 10), (10, 2, 0), 10), "sd15": unet_paths((1, 1, 1, 0), (0, 1, 1, 1), 1)}


@pytest.mark.parametrize("model", UNETS)
def test_both_spellings_of_a_unet_say_the_same(model):
    """Every layer: diffusers and LDM/SGM, dotted and flat, as a file spells it and as it is read."""
    assert len(UNETS[model]) > 300
    for path in UNETS[model]:
        ldm, wanted = to_ldm(path), facts_of(f"unet.{path}")
        assert ldm != path and len(wanted) > 1, path
        spellings = [f"unet.{ldm}", f"unet.{ldm.replace('.', '_')}", f"diffusion_model.{ldm}", path, ldm]
        spellings += [canonical_name(kohya_name(f"unet.{path}", ldm=flag)) for flag in (True, False)]
        assert {s for s in spellings if facts_of(s) != wanted} == set(), (path, wanted)


def lbw_index(path):
    """Index of the block among A1111's 26, from the LDM name alone; None outside all blocks."""
    head, _, number = to_ldm(path).partition(".")
    first = {"input_blocks": 1, "middle_block": 13, "output_blocks": 14}.get(head)
    if first is None:
        return None
    return first + (0 if head == "middle_block" else int(number.split(".")[0]))


IDS = {  # as the table in sd-webui-lora-block-weight's README, in places of the 26
    12: [0, 5, 6, 8, 9, 13, 14, 15, 16, 17, 18, 19],
    17: [0, 2, 3, 5, 6, 8, 9, 13, 17, 18, 19, 20, 21, 22, 23, 24, 25],
    20: [*range(10), 13, *range(14, 23)],
    26: list(range(26)),
}


@pytest.mark.parametrize("model", UNETS)
@pytest.mark.parametrize("count", VECTORS)
def test_a_vector_means_what_it_means_in_a1111(model, count):
    """Each value is that of its block; blocks without a value get 0, what is in no block keeps 1."""
    values = [0.01 * (i + 1) for i in range(count)]
    strengths = BlockStrengths.parse(",".join(map(str, values)))
    by_index = dict(zip(IDS[count], map(float, map("{:g}".format, values)), strict=True))
    for path in UNETS[model]:
        index = lbw_index(path)
        wanted = 1.0 if index is None else by_index.get(index, 0.0)
        assert strengths.factor(f"unet.{path}") == pytest.approx(wanted), path
        assert strengths.factor(f"unet.{to_ldm(path)}") == pytest.approx(wanted), path
    for text in ("text_encoder.text_model.encoder.layers.3.mlp.fc1", "text_encoder_2.text_model.x"):
        assert strengths.factor(text) == pytest.approx(0.01)


A1111 = {  # its default presets: 17 values
    "NONE": "0" * 17, "ALL": "1" * 17, "INS": "11110000000000000", "IND": "10001110000000000",
    "INALL": "11111110000000000", "MIDD": "10001111111100000", "OUTD": "10000000111100000",
    "OUTS": "10000000000011111", "OUTALL": "10000000111111111",
}  # fmt: skip


@pytest.mark.parametrize("name", A1111)
def test_a_preset_is_a1111s_vector_on_what_a_plain_lora_has(name):
    """On text encoders and the attention blocks of SD1.5."""
    preset, vector = BlockStrengths.parse(name), BlockStrengths.parse(",".join(A1111[name]))
    paths = [path for path in UNETS["sd15"] if "attentions" in path]
    for layer in ("text_encoder.text_model.encoder.layers.0.mlp.fc1", *(f"unet.{path}" for path in paths)):
        assert preset.factor(layer) == vector.factor(layer), layer
    assert str(preset) == name and name in PRESETS


SAME = [
    (["transformer.transformer_blocks.3.attn.to_out.0", "unet.double_blocks_3_img_attn_proj",
      "diffusion_model.double_blocks.3.img_attn.proj"], {"unet", "blocks", "double", "attn", "out"}),
    (["transformer.transformer_blocks.3.ff.net.0.proj", "unet.double_blocks_3_img_mlp_0"],
     {"unet", "blocks", "double", "ff"}),
    (["transformer.transformer_blocks.3.norm1.linear", "unet.double_blocks_3_img_mod_lin"],
     {"unet", "blocks", "double", "norm"}),
    (["transformer.single_transformer_blocks.7.proj_out", "unet.single_blocks_7_linear2"],
     {"unet", "blocks", "single", "proj"}),
    (["transformer.time_text_embed.timestep_embedder.linear_1", "unet.time_in_in_layer"], {"unet", "time"}),
    (["transformer.transformer_blocks.3.ff_context.net.2", "unet.joint_blocks_3_context_block_mlp_fc2"],
     {"unet", "blocks", "double", "ff"}),
    (["diffusion_model.blocks.3.self_attn.q", "unet.blocks_3_self_attn_q", "unet._blocks_3_self_attn_q"],
     {"unet", "blocks", "attn", "self_attn", "q"}),
    (["diffusion_model.blocks.3.cross_attn.o", "unet.blocks_3_cross_attn_o"],
     {"unet", "blocks", "attn", "cross_attn", "out"}),
    (["diffusion_model.blocks.3.ffn.0", "unet.blocks_3_ffn_0"], {"unet", "blocks", "ff"}),
    (["diffusion_model.layers.3.attention.out", "unet.layers_3_attention_to_out_0"],
     {"unet", "blocks", "attn", "out"}),
    (["diffusion_model.layers.3.attention.qkv", "unet.double_blocks_3_img_attn_qkv"],
     {"unet", "blocks", "attn"}),
    (["diffusion_model.layers.3.feed_forward.w1"], {"unet", "blocks", "ff"}),
    (["diffusion_model.context_refiner.1.attention.qkv"], {"unet", "refiner", "attn"}),
    (["model.layers.3.self_attn.v_proj", "base_model.model.model.layers.3.self_attn.v_proj"],
     {"unet", "te", "blocks", "attn", "self_attn", "v"}),
    (["transformer.h.3.attn.c_proj"], {"unet", "te", "blocks", "attn", "out"}),
    (["transformer_blocks.3.img_mlp.net.2"], {"unet", "blocks", "double", "ff"}),
    (["text_encoder_3.encoder.block.3.layer.0.SelfAttention.q",
      "text_encoders.t5xxl.transformer.encoder.block.3.layer.0.SelfAttention.q"],
     {"te", "te3", "attn", "self_attn", "q"}),
    (["text_encoder_2.text_model.encoder.layers.3.mlp.fc1",
      "text_encoders.clip_g.transformer.text_model.encoder.layers.3.mlp.fc1"], {"te", "te2", "ff"}),
    (["transformer.transformer_blocks.3.audio_attn1.to_q", "transformer_blocks.3.audio_attn1.to_q"],
     {"unet", "blocks", "audio", "attn", "self_attn", "q"}),
    (["transformer.transformer_blocks.3.audio_attn2.to_out.0"],
     {"unet", "blocks", "audio", "attn", "cross_attn", "out"}),
    (["transformer.transformer_blocks.3.audio_ff.net.2"], {"unet", "blocks", "audio", "ff"}),
    (["transformer.transformer_blocks.3.audio_to_video_attn.to_k"],
     {"unet", "blocks", "audio_to_video", "attn", "k"}),
    (["transformer.transformer_blocks.3.video_to_audio_attn.to_v"],
     {"unet", "blocks", "audio", "video_to_audio", "attn", "v"}),
    (["unet.img_in", "diffusion_model.img_in", "diffusion_model.vace_blocks.3.before_proj"], {"unet"}),
]  # fmt: skip


@pytest.mark.parametrize(("names", "words"), SAME)
def test_transformers_and_text_encoders(names, words):
    """Each spelling says these words, as it is read and as it stands; a double block is a block too."""
    for name in names:
        found = facts_of(canonical_name(name))
        assert facts_of(name) == found or name.startswith("text_encoders")
        assert words <= found.keys() and found.keys() - words <= {"double"}, (name, found)
        numbers = {number for number in found.values() if number is not None}
        assert numbers <= {1, 3, 7}, (name, found)


def test_streams_of_a_real_model():
    """Each layer of LTX-2, as ComfyUI and diffusers name it, is for sound or for the picture."""
    pytest.importorskip("diffusers")
    from diffusers import LTX2VideoTransformer3DModel

    with torch.device("meta"):
        model = LTX2VideoTransformer3DModel(num_layers=2)
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    names += [f"av_ca_{part}_adaln_single.linear" for part in ("a2v_gate", "v2a_gate")]
    names += [f"av_ca_{part}_scale_shift_adaln_single.linear" for part in ("video", "audio")]
    audio, video, cross = (BlockStrengths.parse(f"rest:0 {word}:1") for word in ("audio", "video", "a2v"))
    found = {
        name: (audio.factor(f"transformer.{name}"), video.factor(f"transformer.{name}")) for name in names
    }
    assert set(found.values()) == {(1, 0), (0, 1)}
    sound = {name for name, (is_audio, _) in found.items() if is_audio}
    other = [name for name in names if name not in sound]
    assert len(sound) > 20 and len(other) > 20
    assert all("audio" in name or "v2a" in name for name in sound)
    assert all("audio" not in name or "audio_to_video" in name or "a2v" in name for name in other)
    assert {
        name.split(".")[2] for name in other if cross.factor(f"transformer.{name}") and "blocks" in name
    } == {"audio_to_video_attn"}
