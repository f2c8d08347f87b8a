"""Alpha that only the metadata of a file knows, in every spelling of it.

The right value is that of PEFT and of diffusers, alpha over rank; tensors win over what metadata say.
"""

import json

import pytest
import torch

import merge_ops

PATH = "transformer_blocks.0.attn.to_q"
BLOCK = "blocks.0.self_attn.q"


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def pair(stem, rank=16, alpha=None, ends=(".lora_A.weight", ".lora_B.weight")):
    tensors = {stem + ends[0]: draw(rank, 24), stem + ends[1]: draw(20, rank, seed=1)}
    return tensors if alpha is None else tensors | {f"{stem}.alpha": torch.tensor(float(alpha))}


GLOBAL = [
    {"alpha": "8", "rank": "16"},
    {"alpha": "8"},
    {"lora_alpha": "8", "rank": "16"},
    {"lora_alpha": " 8.0 ", "r": "16"},
    {"lora_alpha": "8", "lora_rank": "16", "format": "pt"},
    {"network_alpha": "8", "network_dim": "16"},
    {"alpha": "8", "rank": "16", "key_format": "minimax-h3-diffusers"},
    {"lora.alpha": "8", "lora.rank": "16"},
    {"lora_config": '{"r": 16, "lora_alpha": 8}'},
    {"adapter_config": '{"peft_type": "LORA", "r": "16", "lora_alpha": "8"}'},
    {"peft_config": '{"default": {"r": 16, "lora_alpha": 8}}'},
    {"config": '{"lora": {"rank": 16, "alpha": 8}}'},
    {"my_notes": '{"lora_alpha": 8, "steps": 5}'},
    {"lora_alpha": "0", "alpha_pattern": '{"to_q": 8, "self_attn.q": "8"}'},
    {"alpha_pattern": '{"to_q": 8, "self_attn.q": 8}'},
    {"lora_alpha": "2", "use_rslora": "true", "r": "16"},
]  # fmt: skip


@pytest.mark.parametrize("metadata", GLOBAL, ids=lambda metadata: next(iter(metadata.values())))
@pytest.mark.parametrize(
    "stem",
    [
        PATH,
        f"transformer.{PATH}",
        f"diffusion_model.{BLOCK}",
        "lora_unet_blocks_0_self_attn_q",
        f"unet.{PATH}",
    ],
)
def test_alpha_of_the_whole_file(metadata, stem, scales):
    if "pattern" in str(metadata) and "_self_attn_" in stem:
        metadata = {
            "alpha_pattern": '{"blocks_0_self_attn_q": 8}'
        }  # patterns are for names as the file has them
    found, _ = scales(pair(stem), metadata)
    assert found == pytest.approx([0.5])


PREFIXED = [
    {"{}.lora_alpha": "64", "{}.r": "16"},
    {"{}.lora_alpha": "64", "{}.rank": "16"},
    {"{}.alpha": "64"},
    {"{}_lora_alpha": "64", "{}_rank": "16"},
    {"{}": '{"r": 16, "lora_alpha": 64}'},
    {"{}.config": '{"r": 16, "lora_alpha": "64"}'},
    {"lora_config": '{"{}": {"r": 16, "lora_alpha": 64}}'},
    {"config": '{"{}.r": 16, "{}.lora_alpha": 64}'},
    {"{}.lora_alpha": "1", "{}.alpha_pattern": '{"{}.NAME": 64}'},
    {"lora_adapter_metadata": '{"{}.r": 16, "{}.lora_alpha": 64}'},
]


@pytest.mark.parametrize("metadata", PREFIXED, ids=lambda metadata: next(iter(metadata)))
@pytest.mark.parametrize(
    ("part", "stem"),
    [
        ("transformer", f"transformer.{PATH}"),
        ("transformer", PATH),
        ("transformer", f"diffusion_model.{PATH}"),
        ("unet", f"unet.{PATH}"),
        ("unet", "unet.down_blocks.0.attentions.0.proj_in"),
        ("text_encoder", "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
    ],
)
def test_alpha_of_one_part_of_the_pipeline(metadata, part, stem, scales):
    inner = stem.removeprefix(f"{part}.").removeprefix("diffusion_model.")
    filled = {
        key.replace("{}", part): value.replace("{}", part).replace("NAME", inner)
        for key, value in metadata.items()
    }
    assert scales(pair(stem), filled) == ([4.0], ())


def test_each_part_has_its_own_alpha(scales):
    """And what nothing is said about has scale 1, as in diffusers."""
    tensors = pair(f"transformer.{PATH}") | pair("text_encoder.text_model.encoder.layers.0.mlp.fc1")
    tensors |= pair("text_encoder_2.text_model.encoder.layers.0.mlp.fc1")
    metadata = {"transformer.lora_alpha": "64", "text_encoder.lora_alpha": "8", "text_encoder.r": "16"}
    assert scales(tensors, metadata)[0] == [0.5, 1.0, 4.0]


def test_layers_of_several_ranks_share_one_alpha(scales):
    """As diffusers reads the turbo LoRAs of MiniMax-H3, whose ranks differ."""
    found, warnings = scales(pair(f"a.{PATH}", 16) | pair(f"b.{PATH}", 4), {"alpha": "8", "rank": "16"})
    assert found == [0.5, 2.0]
    assert "rank 16" in warnings[0]


def test_alphas_of_single_modules(scales):
    """Diffusers calls such a dictionary network alphas."""
    said = json.dumps({f"transformer.a.{PATH}.alpha": 8, f"transformer.b.{PATH}.alpha": 32.0})
    tensors = pair(f"transformer.a.{PATH}") | pair(f"transformer.b.{PATH}")
    assert scales(tensors, {"network_alphas": said})[0] == [0.5, 2.0]
    assert scales(tensors, {f"transformer.a.{PATH}.alpha": "8", "lora_alpha": "16"})[0] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("ends", "extra"),
    [
        ((".lora_down.weight", ".lora_up.weight"), {}),
        ((".lora_A", ".lora_B"), {}),
        ((".lora_A.weight", ".lora_B.weight"), {".lora_B.bias": (20,)}),
        ((".lora_embedding_A", ".lora_embedding_B"), {}),
    ],
)
def test_every_spelling_of_a_pair(ends, extra, scales):
    more = {PATH + end: draw(*shape) for end, shape in extra.items()}
    assert set(scales(pair(PATH, ends=ends) | more, {"alpha": "8", "rank": "16"})[0]) == {0.5}


def test_other_kinds_with_a_rank(write):
    """LoHa and a decomposed LoKr, whose alpha is over the same rank; a difference has no alpha."""
    tensors = {f"{PATH}.hada_{half}_a": draw(20, 16) for half in ("w1", "w2")}
    tensors |= {f"{PATH}.hada_{half}_b": draw(16, 24) for half in ("w1", "w2")}
    tensors |= {"blocks.1.q.lokr_w1": draw(4, 4), "blocks.1.q.lokr_w2_a": draw(5, 16)}
    tensors |= {"blocks.1.q.lokr_w2_b": draw(16, 6), "blocks.2.q.diff": draw(20, 24)}
    lora = merge_ops.load(write(tensors, {"alpha": "8", "rank": "16"}))
    found = {name.removeprefix("transformer."): layer.scale for name, layer in lora.layers.items()}
    assert found == {PATH: 0.5, "blocks.1.q": 0.5, "blocks.2.q": 1.0}
