"""Text encoders may have multipliers of their own, as LoRA loaders have."""

import pytest
import torch

import merge_ops
from merge_ops.adapters import Ia3
from tests.laws import merge

SHAPES = {"unet.mid_block.proj": (12, 10), "text_encoder.text_model.encoder.layers.0.mlp.fc1": (14, 9)}


@pytest.fixture
def loras(make_lora):
    return [make_lora(name, shapes=SHAPES, seed=seed) for seed, name in enumerate("abc")]


@pytest.mark.parametrize("method", sorted(merge_ops.METHODS))
def test_each_part_has_its_weights(loras, method):
    """The UNet's layers get ``weights``, the text encoder's get ``text_weights``."""
    unet, text = SHAPES
    both = merge(loras, [0.5, 1.0, -1.0], method, text_weights=[2.0, 0.0, 0.3])
    assert torch.equal(both.delta(unet), merge(loras, [0.5, 1.0, -1.0], method).delta(unet))
    assert torch.equal(both.delta(text), merge(loras, [2.0, 0.0, 0.3], method).delta(text))


def test_order_does_not_matter_for_one_lora_twice(loras):
    """The same LoRA twice, apart only in its text weight: any order gives the same bits."""
    a, text = loras[0], list(SHAPES)[1]
    pairs = [(a, 0.2), (a, 0.9), (loras[1], 0.9)]

    def merged(rows):
        kept = [w for _, w in rows]
        return merge_ops.merge([lora for lora, _ in rows], [1.0] * 3, "dare_ties", text_weights=kept).delta(
            text
        )

    assert torch.equal(merged(pairs), merged(pairs[::-1]))


def test_the_recipe_says_so_and_numbers_must_match(loras):
    """As many text weights as LoRAs; the recipe names them where they differ."""
    with pytest.raises(merge_ops.ParameterError, match="3 weights"):
        merge_ops.merge(loras, text_weights=[1.0])
    from merge_ops.recipes import recipe_of

    sources = recipe_of(merge_ops.merge(loras, [1.0, 1.0, 0.5], text_weights=[1.0, 0.2, 0.5]))["sources"]
    assert [source.get("text_weight") for source in sources] == [None, 0.2, None]


@pytest.mark.parametrize(
    ("name", "is_text"),
    [
        ("unet.mid_block.attentions.0.proj_in", False),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc2", True),
        ("model.layers.0.mlp.down_proj", True),
        ("transformer.h.0.mlp.c_proj", True),
    ],
)
def test_scaling_factors_follow_the_rule_of_loras(name, is_text, make_lora):
    """A text encoder may be a language model: (IA)3 merged without the base takes the weight a LoRA takes."""
    factors = Ia3(torch.tensor([0.5, -0.25, 2.0]), by_input=False)
    scaled = merge_ops.Lora("scaled", {}, base_dependent={name: factors})
    merged = merge_ops.merge([scaled], [0.5], text_weights=[3.0], blocks=["0.5"], scale=2.0)
    weight = 3.0 if is_text else 0.5
    torch.testing.assert_close(merged.ia3[name].added, 2.0 * 0.5 * weight * factors.added)
    plain = make_lora(shapes={name: (4, 3)})
    exact = plain.layers[name].delta()
    torch.testing.assert_close(
        merge_ops.merge([plain], [0.5], text_weights=[3.0]).delta(name), weight * exact
    )
