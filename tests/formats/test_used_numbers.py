"""NaN, infinity and empty factors count only where they are used; what is stored twice is refused."""

import pytest
import torch
from lycoris.modules.lokr import LokrModule

import merge_ops
from merge_ops.errors import LoraFormatError
from merge_ops.formats import from_tensors

STEM = "lora_unet_mid_block_attentions_0_proj_in"
NAME = "unet.mid_block.attentions.0.proj_in"
INFINITE, NOT_A_NUMBER = torch.tensor(float("inf")), torch.tensor(float("nan"))


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


def module(**parts):
    return {f"{STEM}.{name.replace('__', '.')}": value for name, value in parts.items()}


PAIR = {"lora_down__weight": draw(2, 8), "lora_up__weight": draw(6, 2)}
OTHER = {"lora_unet_conv_in.lora_down.weight": draw(2, 8), "lora_unet_conv_in.lora_up.weight": draw(6, 2)}


def test_a_whole_lokr_of_lycoris_saved_in_half_precision(write):
    """Kohya's issue 1402: with dimension 100000 both factors stay whole, and fp16 makes alpha infinite."""
    made = LokrModule("x", torch.nn.Linear(24, 20, bias=False), 1.0, lora_dim=100000, alpha=1, factor=4)
    with torch.no_grad():
        for value in made.parameters():
            value.normal_(generator=torch.Generator().manual_seed(0))
    state = {
        key: value.half() for key, value in made.state_dict().items() if key.startswith(("lokr", "alpha"))
    }
    assert torch.isinf(state["alpha"])
    lora = merge_ops.load(
        write({f"{STEM}.{key}": value for key, value in state.items()}, {"ss_network_dim": "100000"})
    )
    (layer,) = lora.layers.values()
    torch.testing.assert_close(layer.delta(), made.get_weight((20, 24)).detach(), rtol=1e-2, atol=1e-2)
    assert layer.scale == 1
    assert lora.warnings == ()


@pytest.mark.parametrize("alpha", [INFINITE, NOT_A_NUMBER])
@pytest.mark.parametrize(
    "parts",
    [
        {"lokr_w1": draw(2, 2), "lokr_w2": draw(3, 4)},
        {"lokr_w1": draw(2, 2), "lokr_w2": draw(3, 4, 1, 1)},
        {"lokr_w1": draw(2, 2), "lokr_w2": draw(3, 4), "dora_scale": draw(6, 1)},
        {"diff": draw(6, 8)},
        {"diff_b": draw(6)},
        {"set_weight": draw(6, 8)},
        {"w_norm": draw(6), "b_norm": draw(6)},
    ],
)
def test_an_alpha_without_effect_may_be_anything(parts, alpha, write):
    plain = merge_ops.load(write(module(**parts)))
    lora = merge_ops.load(write(module(**parts, alpha=alpha)))
    assert [layer.scale for layer in lora.layers.values()] == [1.0] * len(plain.layers)
    assert lora.base_dependent.keys() == plain.base_dependent.keys()


@pytest.mark.parametrize(
    "parts",
    [
        PAIR,
        {
            f"hada_{w}_{half}": draw(*shape)
            for w in ("w1", "w2")
            for half, shape in (("a", (6, 2)), ("b", (2, 8)))
        },
        {"lokr_w1": draw(2, 2), "lokr_w2_a": draw(3, 2), "lokr_w2_b": draw(2, 4)},
        {
            "a1__weight": draw(8, 2),
            "a2__weight": draw(2, 8),
            "b1__weight": draw(6, 2),
            "b2__weight": draw(2, 8),
        },
    ],
)
@pytest.mark.parametrize("alpha", [INFINITE, -INFINITE, NOT_A_NUMBER])
def test_an_alpha_that_scales_must_be_a_number(parts, alpha, write):
    with pytest.raises(LoraFormatError, match=rf"^some\.safetensors: .*alpha of {STEM}"):
        merge_ops.load(write(module(**parts, alpha=alpha)))
    with pytest.raises(LoraFormatError, match=f"alpha of {STEM}"):
        from_tensors("x", module(**parts, alpha=alpha))


def test_an_infinite_constraint_of_oft_bounds_nothing(write):
    blocks, weight = 0.3 * draw(3, 2, 2), draw(6, 8)
    free = merge_ops.load(write(module(oft_blocks=blocks))).base_dependent[NAME]
    bound = merge_ops.load(write(module(oft_blocks=blocks, alpha=INFINITE))).base_dependent[NAME]
    for reader in ("peft", "comfyui"):
        torch.testing.assert_close(bound.change(weight, reader), free.change(weight, reader))
    with pytest.raises(LoraFormatError, match="NaN"):
        merge_ops.load(write(module(oft_blocks=blocks, alpha=NOT_A_NUMBER)))


def test_what_is_not_read_may_be_damaged(write):
    """A key that means nothing to us, and a kind that is refused, beside a sound layer."""
    stray = {"step": NOT_A_NUMBER, "lora_unet_x.lambda_layer": INFINITE.reshape(1, 1)}
    lora = merge_ops.load(write(module(**PAIR) | stray))
    assert lora.unmerged.keys() == {"step", "unet.x"}


@pytest.mark.parametrize(
    "key", ["lora_up.weight", "lora_mid.weight", "dora_scale", "lora_B.lightx2v.weight", "diff_b"]
)
def test_what_is_read_must_be_finite(key, write):
    parts = module(**PAIR) | {f"{STEM}.{key}": torch.full((6, 2), float("inf"))}
    with pytest.raises(LoraFormatError, match=rf"^some\.safetensors: {STEM}\.{key} holds NaN or infinity"):
        merge_ops.load(write(parts))


EMPTY = [
    ({"lora_down__weight": (0, 8), "lora_up__weight": (6, 0)}),
    ({"lora_down__weight": (0, 8, 3, 3), "lora_up__weight": (6, 0, 1, 1)}),
    ({"lora_A__weight": (0, 8), "lora_B__weight": (6, 0)}),
    ({"lora_embedding_A": (0, 8), "lora_embedding_B": (6, 0)}),
    ({"lora_A": (0, 8), "lora_B": (6, 0), "lora_E": (0, 1)}),
    ({"hada_w1_a": (6, 0), "hada_w1_b": (0, 8), "hada_w2_a": (6, 0), "hada_w2_b": (0, 8)}),
    ({"lokr_w1": (2, 2), "lokr_w2_a": (3, 0), "lokr_w2_b": (0, 4)}),
]


@pytest.mark.parametrize("shapes", EMPTY, ids=str)
@pytest.mark.parametrize("more", [{}, {"alpha": torch.tensor(4.0)}])
@pytest.mark.parametrize("metadata", [None, {"lora_alpha": "8", "r": "0"}])
def test_a_layer_of_rank_0_is_skipped_by_name(shapes, more, metadata, write):
    parts = module(**{name: torch.zeros(shape) for name, shape in shapes.items()}, **more)
    lora = merge_ops.load(write(parts | OTHER, metadata))
    assert lora.unmerged == {NAME: "a layer of rank 0, which adds nothing"}
    assert list(lora.layers) == ["unet.conv_in"]
    assert any(row.name == NAME and row.status == "skipped" for row in merge_ops.merge([lora]).report.layers)


def test_a_bias_beside_a_layer_of_rank_0_stays(write):
    parts = {"lora_down__weight": torch.empty(0, 8), "lora_up__weight": torch.empty(6, 0), "diff_b": draw(6)}
    lora = merge_ops.load(write(module(**parts)))
    assert list(lora.layers) == [f"{NAME}.bias"]
    assert list(lora.unmerged) == [NAME]


@pytest.mark.parametrize("more", [{"dora_scale": draw(6, 1)}, {"lora_up__bias": draw(6)}])
def test_what_needs_a_layer_of_rank_0_is_refused(more, write):
    parts = {"lora_down__weight": torch.empty(0, 8), "lora_up__weight": torch.empty(6, 0)}
    with pytest.raises(LoraFormatError, match=f"{STEM} has rank 0"):
        merge_ops.load(write(module(**parts, **more) | OTHER))


def test_a_file_of_nothing_but_rank_0(write):
    parts = {"lora_down__weight": torch.empty(0, 8), "lora_up__weight": torch.empty(6, 0)}
    with pytest.raises(LoraFormatError, match=rf"{NAME} is a layer of rank 0"):
        merge_ops.load(write(module(**parts)))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (PAIR | {"dora_scale": draw(6, 1), "lora_magnitude_vector": draw(6)}, "two magnitudes"),
        (PAIR | {"dora_scale": draw(6, 1), "lora_magnitude_vector__weight": draw(6)}, "two magnitudes"),
        ({"lokr_w1": draw(2, 2), "lokr_w2": draw(3, 4), "lokr_w2_a": draw(3, 2), "lokr_w2_b": draw(2, 4)},
         "lokr_w2 and also lokr_w2_a, lokr_w2_b"),
        ({"lokr_w1": draw(2, 2), "lokr_w1_a": draw(2, 2), "lokr_w1_b": draw(2, 2), "lokr_w2": draw(3, 4)},
         "lokr_w1 and also lokr_w1_a, lokr_w1_b"),
        ({"lokr_w1": draw(2, 2), "lokr_w2": draw(3, 4), "lokr_t2": draw(2, 2, 3, 3)}, "also lokr_t2"),
        (PAIR | {"lora_embedding_A": draw(2, 8), "lora_embedding_B": draw(6, 2)}, "embedding_A and also"),
        (PAIR | {"lora_A__weight": draw(2, 8), "lora_B__weight": draw(6, 2)}, "two spellings"),
        (PAIR | {"diff": draw(6, 8)}, "two kinds at once"),
        (PAIR | {"set_weight": draw(6, 8)}, "two kinds at once"),
        ({"oft_blocks": draw(3, 2, 2), "oft_R__weight": draw(4, 1)}, "two kinds at once"),
        (PAIR | {"ia3_l": draw(6, 1)}, "two kinds at once"),
        ({"diff": draw(6), "w_norm": draw(6)}, "both diff and w_norm"),
        ({"diff_b": draw(6), "b_norm": draw(6)}, "changes its bias twice"),
        (PAIR | {"lora_up__bias": draw(6), "diff_b": draw(6)}, "changes its bias twice"),
    ],
)  # fmt: skip
def test_what_is_stored_twice_is_refused(parts, says, write):
    """Whichever half would win, the other would be dropped without a word."""
    with pytest.raises(LoraFormatError, match=rf"^some\.safetensors: {STEM}.*{says}"):
        merge_ops.load(write(module(**parts)))
