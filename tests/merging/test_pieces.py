"""Fused weights beside their parts, and prefixes that nobody knows, outside of ComfyUI."""

import pytest
import torch

import merge_ops
from merge_ops.formats import from_tensors

ATTENTION = "transformer.transformer_blocks.0.attn."
# what is fused, its parts and their rows
FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v", 16, 8, 8),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj", 16, 16, 16),
    "to_kv": ("to_k", "to_v", 12, 12),
    "qkv_proj": ("q_proj", "k_proj", "v_proj", 16, 4, 4),
    "gate_up_proj": ("gate_proj", "up_proj", 24, 24),
}


def lora_of(name, **shapes):
    """A LoRA in diffusers' spelling: ``{module: (rows, columns)}``."""
    random, tensors = torch.Generator().manual_seed(len(name)), {}
    for module, (rows, columns) in shapes.items():
        tensors[f"{ATTENTION}{module}.lora_A.weight"] = torch.randn(2, columns, generator=random)
        tensors[f"{ATTENTION}{module}.lora_B.weight"] = torch.randn(rows, 2, generator=random)
    return from_tensors(name, tensors)


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("word", FUSED)
def test_a_fused_weight_is_cut_where_another_has_its_parts(word, method):
    """Any one part tells the rows of the others; the sum is that of the rows."""
    half = len(FUSED[word]) // 2
    parts, rows = FUSED[word][:half], FUSED[word][half:]
    fused = lora_of("fused", **{word: (sum(rows), 16)})
    whole = fused.layers[ATTENTION + word].matrix().split(rows)
    more = {"density": 1.0} if method == "ties" else {}
    for part, length in zip(parts, rows, strict=True):
        split = lora_of("split", **{part: (length, 16)})
        for loras in ([fused, split], [split, fused]):
            merged = merge_ops.merge(loras, method=method, **more)
            assert set(merged.layers) == {ATTENTION + each for each in parts}
        other = merge_ops.merge([split, lora_of("fused", **{part: (length, 16)})])
        assert other.layers.keys() == split.layers.keys()
        if method == "linear":
            for each, own in zip(parts, whole, strict=True):
                added = split.layers[ATTENTION + each].matrix() if each == part else 0
                assert torch.allclose(merged.delta(ATTENTION + each), own + added, atol=1e-5)


def test_other_kinds_are_cut_as_well():
    """LoHa and LoKr, in kohya's spelling."""
    stem = "lycoris_transformer_blocks_0_attn_to_qkv"
    loha = {f"{stem}.hada_w{i}_{side}": torch.randn(shape) for i in (1, 2) for side, shape in (
        ("a", (24, 2)), ("b", (2, 16)),
    )}  # fmt: skip
    lokr = {f"{stem}.lokr_w1": torch.randn(4, 4), f"{stem}.lokr_w2": torch.randn(6, 4)}
    split = lora_of("split", to_k=(8, 16))
    for tensors in (loha, lokr):
        fused = from_tensors("fused", tensors)
        merged = merge_ops.merge([fused, split])
        (layer,) = fused.layers.values()
        assert len(merged.layers) == 3
        wanted = layer.matrix()[8:16] + split.layers[f"{ATTENTION}to_k"].matrix()
        assert torch.allclose(merged.delta(f"{ATTENTION}to_k"), wanted, atol=1e-5)


@pytest.mark.parametrize("size", [(24, 1), (1, 16)])
def test_the_base_model_has_the_parts(size):
    """A DoRA on the fused weight is computed on all of it, and added to the parts that the model has."""
    random = torch.Generator().manual_seed(0)
    weights = {f"{ATTENTION}to_{letter}": torch.randn(rows, 16, generator=random)
               for letter, rows in (("q", 12), ("k", 6), ("v", 6))}  # fmt: skip
    tensors = {
        f"{ATTENTION}to_qkv.lora_down.weight": torch.randn(2, 16, generator=random),
        f"{ATTENTION}to_qkv.lora_up.weight": torch.randn(24, 2, generator=random),
        f"{ATTENTION}to_qkv.dora_scale": torch.rand(size, generator=random) + 1,
    }
    fused = from_tensors("fused", tensors)
    merged = merge_ops.merge([fused], base=weights.get)
    whole = torch.cat(list(weights.values()))
    (dora,) = fused.base_dependent.values()
    wanted = dora.change(whole, "peft").split([12, 6, 6])
    assert set(merged.layers) == set(weights)
    for name, part in zip(weights, wanted, strict=True):
        assert torch.allclose(merged.delta(name), part, atol=1e-5), name


def test_a_base_model_with_the_fused_weight_keeps_it():
    """Where the model has it as one, nothing is cut."""
    weights = {f"{ATTENTION}to_qkv": torch.randn(48, 16)}
    merged = merge_ops.merge([lora_of("fused", to_qkv=(48, 16))], base=weights.get)
    assert list(merged.layers) == list(weights)


def test_alone_a_fused_weight_stays_as_it_is():
    """No other says what its parts are."""
    fused = lora_of("fused", to_qkv=(48, 16))
    assert list(merge_ops.merge([fused, fused]).layers) == [f"{ATTENTION}to_qkv"]


@pytest.mark.parametrize(
    ("own", "other", "message"),
    [
        ({"to_qkv": (30, 16)}, {"to_k": (16, 16)}, "^fused: .*to_qkv has 30 rows"),
        ({"to_qkv": (48, 16)}, {"to_k": (16, 16), "to_v": (12, 16)}, "^fused: .*different base models"),
        ({"to_qkv": (48, 16), "to_q": (16, 16)}, {"to_k": (16, 16)}, "^fused changes .*as a part of"),
    ],
)
def test_rows_that_do_not_fit_are_refused(own, other, message):
    """By the name of the file and of the layer."""
    with pytest.raises(merge_ops.IncompatibleLoraError, match=message):
        merge_ops.merge([lora_of("fused", **own), lora_of("split", **other)])


def test_an_unknown_prefix_is_refused_in_kohyas_spelling_too():
    """One has dots, the other underscores."""
    dotted, flat = (
        {f"{stem}.lora_down.weight": torch.ones(1, 4), f"{stem}.lora_up.weight": torch.ones(4, 1)}
        for stem in ("foo.towers.1.mix", "lora_unet_towers_1_mix")
    )
    with pytest.raises(merge_ops.IncompatibleLoraError, match=r"^other has 'foo\.' in front"):
        merge_ops.merge([from_tensors("plain", flat), from_tensors("other", dotted)])


@pytest.mark.parametrize("prefix", ["foo.", "student.net_g."])
@pytest.mark.parametrize("stem", ["blocks.0.self_attn.q", "towers.1.mix", "model.layers.0.mlp.up_proj"])
def test_an_unknown_prefix_is_refused(prefix, stem):
    """Names that are alike but for something in front are not merged apart."""
    plain, other = ({f"{name}.lora_A.weight": torch.ones(1, 4), f"{name}.lora_B.weight": torch.ones(4, 1)}
                    for name in (stem, prefix + stem))  # fmt: skip
    loras = [from_tensors("plain", plain), from_tensors("other", other)]
    for each in (loras, loras[::-1]):
        with pytest.raises(merge_ops.IncompatibleLoraError, match=f"^other has '{prefix}' in front"):
            merge_ops.merge(each)


def test_other_blocks_of_one_model_are_no_prefix():
    """Two LoRAs of different blocks have nothing in common, and may be merged."""
    names = ("transformer.vace_blocks.0.attn1.to_q", "transformer.blocks.0.attn1.to_q")
    loras = [
        from_tensors(
            name, {f"{name}.lora_A.weight": torch.ones(1, 4), f"{name}.lora_B.weight": torch.ones(4, 1)}
        )
        for name in names
    ]
    assert len(merge_ops.merge(loras).layers) == 2
