"""Places of layers, for sliders: what a text means for each, and that a term decides about its layers."""

import pytest

from merge_ops import BlockStrengths
from merge_ops.blocks.sliders import places_of, sorts_of, values_of
from tests.blocks.test_names import unet_paths

TEXT = [f"text_encoder.text_model.encoder.layers.{i}.self_attn.q_proj" for i in range(3)]
TEXT_2 = [f"text_encoder_2.text_model.encoder.layers.{i}.mlp.fc1" for i in range(3)]
MODELS = {
    "sd15": [*TEXT, *(f"unet.{path}" for path in unet_paths((1, 1, 1, 0), (0, 1, 1, 1), 1))],
    "sdxl": [*TEXT, *TEXT_2, *(f"unet.{path}" for path in unet_paths((0, 2, 10), (10, 2, 0), 10))],
    "flux": [
        *TEXT, "transformer.x_embedder", "transformer.norm_out.linear",
        *(f"transformer.transformer_blocks.{i}.{part}" for i in range(19)
          for part in ("attn.to_q", "attn.add_k_proj", "ff.net.2", "norm1.linear")),
        *(f"transformer.single_transformer_blocks.{i}.{part}" for i in range(38)
          for part in ("attn.to_q", "proj_mlp", "proj_out")),
    ],
    "wan": [f"diffusion_model.blocks.{i}.{part}" for i in range(30)
            for part in ("self_attn.q", "cross_attn.k", "ffn.0")],
    "ltx2": [f"transformer.transformer_blocks.{i}.{part}" for i in range(4)
             for part in ("attn1.to_q", "audio_attn1.to_q", "audio_to_video_attn.to_q", "ff.net.2",
                          "audio_ff.net.2")],
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_every_layer_has_one_place(model):
    """None is forgotten and none is in two."""
    places = places_of(MODELS[model])
    layers = [layer for place in places for layer in place.layers]
    assert sorted(layers) == sorted(MODELS[model])
    assert len({place.selector for place in places}) == len(places)


@pytest.mark.parametrize("model", MODELS)
def test_a_term_for_a_place_is_for_its_layers(model):
    """Where all narrower places have a term, a term for a group is for what is left of it."""
    places = places_of(MODELS[model])
    numbers = {place.selector: 1 + i / 64 for i, place in enumerate(places)}
    text = " ".join(f"{selector}:{number}" for selector, number in numbers.items())
    strengths = BlockStrengths.parse(text)
    for place in places:
        assert {strengths.factor(layer) for layer in place.layers} == {numbers[place.selector]}
    found = values_of(text, places)
    assert found.places == numbers and found.exact


def test_places_of_real_models():
    """What a user sees."""
    named = {model: [place.selector for place in places_of(layers)] for model, layers in MODELS.items()}
    assert named["wan"] == [f"blocks.{i}" for i in range(30)]
    assert named["flux"][:4] == ["te1", "unet", "double.0", "double.1"] and named["flux"][-1] == "single.37"
    assert named["sdxl"][:3] == ["te1", "te2", "unet"]
    assert {"in0", "in4", "in8", "mid", "out0", "out5"} < set(named["sdxl"])
    assert sorts_of(MODELS["sd15"]).keys() == {"attn", "ff"}
    sorts = sorts_of(MODELS["ltx2"])
    assert {sort: len(layers) for sort, layers in sorts.items()} == {
        "attn": 12, "ff": 8, "audio": 8, "video": 12,
    }  # fmt: skip
    found = values_of("blocks.1:0.5 audio:0 attn:0.25", places_of(MODELS["ltx2"]))
    assert found.exact and found.sorts == {"attn": 0.25, "ff": 1, "audio": 0, "video": 1}


@pytest.mark.parametrize(
    ("text", "exact", "values"),
    [
        ("", True, {"in4": 1, "mid": 1, "te1": 1}),
        ("INS", True, {"in4": 1, "in5": 0, "mid": 0, "te1": 1}),
        ("1,0,0,0,.5,0,0,0,1,1,1,1,1,1,1,1,1", True, {"te1": 1, "in5": 0.5, "mid": 0, "out3": 1}),
        ("down:0.5 in4:0.25 attn:0.8", True, {"in4": 0.25, "in5": 0.5, "mid": 1}),
        ("0.5 attn:0.8", False, {"in4": 0.5}),
        ("down:0.5 q:2", False, {"in4": 0.5}),
        ("in4.attn:0.5", False, {"in4": 1}),
        ("te1.0:0.5", False, {"mid": 1}),
    ],
)
def test_reading_a_text(text, exact, values):
    """Presets, vectors and names become numbers; what is finer than a place is not exact."""
    found = values_of(text, places_of(MODELS["sd15"]))
    assert found.exact == exact
    assert {selector: found.places[selector] for selector in values} == values
