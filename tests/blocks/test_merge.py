"""Merges with block strengths: the laws hold, a strength of 0 leaves a LoRA out, recipes keep them."""

import itertools
from dataclasses import replace

import pytest
import torch

import merge_ops
from merge_ops import METHODS, BlockStrengths, MergeError, ParameterError, Recipe
from tests.laws import merge, skip_if_broken

BLOCK = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
SHAPES = {
    f"{BLOCK}.attn1.to_q": (24, 20),
    f"{BLOCK}.ff.net.2": (16, 40),
    "unet.mid_block.resnets.0.conv1": ("conv", 12, 8 * 9, (3, 3)),
    "unet.up_blocks.0.attentions.1.proj_in": (18, 18),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": (32, 12),
}
BLOCKS = ["down:0.5 mid:2 attn:0.8 te:0", None, "0.25 down:-1", "INALL"]
WEIGHTS = [0.7, -0.4, 1.3, 0.2]
every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture
def loras(make_lora):
    """Four LoRAs; the last has the name and the weights of the first."""
    made = [make_lora(f"lora{i}", shapes=SHAPES, rank=3 + i, alpha=5, seed=i) for i in range(3)]
    return [*made, replace(made[0])]


def deltas(merged):
    return {name: merged.delta(name) for name in merged.layers}


def by_hand(lora, text):
    """The same LoRA with its alphas multiplied by hand, and without the layers at 0."""
    if text is None:
        return lora
    factors = {name: BlockStrengths.parse(text).factor(name) for name in lora.layers}
    layers = {name: layer.scaled(factors[name]) for name, layer in lora.layers.items() if factors[name]}
    return replace(lora, layers=layers, origin=lora)


def assert_close(found, wanted, tolerance=1e-5):
    assert found.keys() == wanted.keys()
    for name, delta in wanted.items():
        assert (found[name] - delta).norm() <= tolerance * delta.norm(), name


@pytest.mark.parametrize(
    "name", [name for name, method in METHODS.items() if "weighting" not in method.breaks]
)
@pytest.mark.parametrize("space", ["delta", "factors"])
def test_methods_without_a_vote_merge_loras_scaled_by_hand(name, space, make_lora):
    """A strength multiplies the weight, and so the alpha; in factor space only a positive one does."""
    loras = [make_lora(f"lora{i}", shapes=SHAPES, rank=4, seed=i) for i in range(4)]
    if space == "factors" and METHODS[name].kind != "entrywise":
        pytest.skip(f"{name} has no factor space")
    texts = [text if space == "delta" else "0.25 down:1 te:0" for text in BLOCKS]
    found = merge(loras, WEIGHTS, name, blocks=texts, space=space)
    wanted = merge(list(map(by_hand, loras, texts)), WEIGHTS, name, space=space)
    assert_close(deltas(found), deltas(wanted))


@every_method
def test_a_layer_is_merged_with_weights_of_its_own(name, loras):
    """Each layer is that of a merge with these weights, among the LoRAs that are not at 0 there."""
    found = deltas(merge(loras[:3], WEIGHTS[:3], name, blocks=BLOCKS[:3]))
    for layer, delta in found.items():
        factors = [BlockStrengths.parse(text).factor(layer) if text else 1.0 for text in BLOCKS[:3]]
        triples = zip(loras, WEIGHTS, factors, strict=False)
        some = [(lora, weight * factor) for lora, weight, factor in triples if factor]
        assert torch.equal(merge(*zip(*some, strict=True), name).delta(layer), delta), layer


@every_method
def test_alone_it_is_the_scaled_lora(name, loras):
    """With density 1."""
    skip_if_broken(name, "full")
    full = {"density": 1.0} if any(p.name == "density" for p in METHODS[name].params) else {}
    merged = merge(loras[:1], [0.7], name, blocks=BLOCKS[:1], **full)
    scaled = by_hand(loras[0], BLOCKS[0])
    assert_close(deltas(merged), {key: 0.7 * layer.delta() for key, layer in scaled.layers.items()})


@every_method
def test_order_and_sign(name, loras):
    """With one LoRA twice that differs in nothing but its block strengths."""
    skip_if_broken(name, "order", "sign")
    weights = [0.7, -0.4, 1.3, 0.7]
    wanted = deltas(merge(loras, weights, name, blocks=BLOCKS))
    rows = list(zip(loras, weights, BLOCKS, strict=True))
    for order in itertools.permutations(rows):
        some, again, texts = zip(*order, strict=True)
        found = deltas(merge(some, again, name, blocks=texts))
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    negative = deltas(merge(loras, [-w for w in weights], name, blocks=BLOCKS))
    assert all(torch.equal(-negative[key], wanted[key]) for key in wanted)


@every_method
def test_no_strengths_or_all_1_change_nothing(name, loras):
    """Bit for bit."""
    wanted = deltas(merge(loras, WEIGHTS, name))
    for blocks in ([None] * 4, [""] * 4, ["ALL", "down:1", "rest:1 attn:1", None]):
        found = deltas(merge(loras, WEIGHTS, name, blocks=blocks))
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@every_method
def test_save_load_and_recipe(name, loras, tmp_path):
    """Law 6, and the recipe in the file gives the merge again, bit for bit."""
    merged = merge(loras[:3], WEIGHTS[:3], name, blocks=BLOCKS[:3], rank=4)
    path = tmp_path / "saved.safetensors"
    report = merge_ops.save(merged, path, dtype=torch.float32)
    assert report.total_error < 1e-5
    assert_close({k: layer.delta() for k, layer in merge_ops.load(path).layers.items()}, deltas(merged), 1e-4)
    recipe = merge_ops.read_recipe(path)
    assert recipe.blocks == [BLOCKS[0], None, "rest:0.25 down:-1"]
    assert Recipe.parse(recipe.to_json()) == recipe == Recipe.of(merged)
    if METHODS[name].needs_recording:
        with pytest.raises(ParameterError, match="needs a recording"):
            recipe.run(loras[:3])
        return
    again = recipe.run(loras[:3])
    assert all(torch.equal(again.delta(key), merged.delta(key)) for key in merged.layers)
    merge_ops.save(again, tmp_path / "again.safetensors", dtype=torch.float32)
    first, second = (merge_ops.load(tmp_path / f"{n}.safetensors") for n in ("saved", "again"))
    assert first.metadata["lora_alloy"] == second.metadata["lora_alloy"]
    for key, layer in first.layers.items():
        assert torch.equal(layer.up, second.layers[key].up) and torch.equal(
            layer.down, second.layers[key].down
        )


def test_a_lora_at_0_has_no_vote(make_lora):
    """In TIES with one that is left out, the other is alone; at weight 0 it would vote, as in PEFT."""
    loras = [make_lora(n, shapes=SHAPES, seed=i) for i, n in enumerate("ab")]
    out = merge(loras, [1, 1], "ties", blocks=[None, "down:0"], density=1.0)
    for layer in SHAPES:
        alone = torch.allclose(out.delta(layer), loras[0].layers[layer].delta(), atol=1e-6)
        assert alone == layer.startswith("unet.down")


def test_what_is_left_out_is_reported(loras):
    """A layer that no LoRA takes part in, and a selector without a layer."""
    merged = merge(loras[:2], blocks=["te:0 mid:0", "te:0 double.3:1"])
    rows = {row.name: row for row in merged.report.layers}
    assert rows.keys() == SHAPES.keys()
    text = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    assert (rows[text].status, rows[text].reason) == ("skipped", "block strength 0 in lora0, lora1")
    assert rows["unet.mid_block.resnets.0.conv1"].loras == 1
    assert merged.report.counts() == {"merged": 4, "skipped": 1}
    (warning,) = merged.report.warnings
    assert warning == "lora1: no layer is selected by the block strength of double.3"


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        (["NONE", "rest:0"], "0 in every layer of every LoRA"),
        (["down:1"], "2 LoRAs need 2 entries"),
        ("down:1", "one text was given"),
        ([None, "dwon:1"], "lora1: unknown block selector 'dwon'"),
        ([None, 0.5], "lora1: block strengths are text"),
    ],
)
def test_refusing(blocks, says, loras):
    """One sentence, with the LoRA's name."""
    with pytest.raises(ParameterError, match=says):
        merge(loras[:2], blocks=blocks)


@pytest.mark.parametrize("blocks", [3, ["down:1"], "dwon:1", " "])
def test_wrong_blocks_in_a_recipe(blocks):
    """Refused when the recipe is made."""
    with pytest.raises(MergeError):
        Recipe.parse({"recipe": 1, "sources": [{"name": "a", "blocks": blocks}]})
