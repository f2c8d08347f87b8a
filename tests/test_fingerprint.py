"""A LoRA's fingerprint follows its delta, and nothing else of it."""

from collections import Counter
from dataclasses import replace

import torch

from merge_ops import Lora
from merge_ops.merging.fingerprint import fingerprint


def test_it_is_16_bits_and_the_same_every_time(make_lora):
    marks = [fingerprint(make_lora(seed=7)) for _ in range(3)]
    assert len(set(marks)) == 1 and 0 <= marks[0] < 1 << 16


def test_file_name_factors_rank_and_alpha_do_not_matter(make_lora, refactored):
    for seed in range(20):
        lora = make_lora(seed=seed, rank=3, alpha=8)
        assert fingerprint(refactored(lora, name="other", pad=seed % 4, seed=seed)) == fingerprint(lora)


def test_order_of_the_layers_and_a_positive_factor_do_not_matter(make_lora):
    lora = make_lora(seed=1)
    turned = Lora("turned", dict(reversed(lora.layers.items())))
    louder = Lora("louder", {k: v.scaled(3.7) for k, v in lora.layers.items()})
    assert fingerprint(turned) == fingerprint(louder) == fingerprint(lora)


def test_the_negative_has_the_opposite_bits(make_lora):
    lora = make_lora(seed=1)
    negative = Lora("negative", {k: v.scaled(-1.0) for k, v in lora.layers.items()})
    assert fingerprint(negative) == fingerprint(lora) ^ 0xFFFF


def test_half_precision_rarely_changes_a_bit(make_lora):
    """A bit flips only where a projection happens to be within rounding of zero."""
    changed = 0
    for seed in range(100):
        lora = make_lora(seed=seed)
        half = {k: replace(v, up=v.up.half(), down=v.down.half()) for k, v in lora.layers.items()}
        changed += fingerprint(Lora("half", half)) != fingerprint(lora)
    assert changed <= 3


def test_different_loras_differ(make_lora):
    """300 random LoRAs on 65536 values: 0.7 pairs are expected to meet, and the bits are fair."""
    marks = Counter(fingerprint(make_lora(seed=seed)) for seed in range(300))
    assert sum(count - 1 for count in marks.values()) <= 5
    ones = sum(mark.bit_count() * count for mark, count in marks.items())
    assert abs(ones / (300 * 16) - 0.5) < 3 * 0.5 / (300 * 16) ** 0.5


def test_every_layer_of_a_small_lora_counts(make_lora):
    lora = make_lora(seed=1)
    for name, layer in lora.layers.items():
        marks = {
            fingerprint(Lora("x", {**lora.layers, name: layer.scaled(s)})) for s in (1.0, -20.0, 40.0, 0.0)
        }
        assert len(marks) > 1, name


def test_only_some_layers_of_a_large_one_are_read(make_lora):
    shapes = {f"layer{i:03}": (6, 5) for i in range(500)}
    lora = make_lora(shapes=shapes, seed=2)
    names = sorted(shapes)
    read = set(names[::16])
    rest = Lora("rest", {k: v if k in read else v.scaled(9.0) for k, v in lora.layers.items()})
    assert len(read) == 32 and fingerprint(rest) == fingerprint(lora)


def test_zero_has_a_fingerprint(make_lora):
    lora = make_lora(seed=1)
    zero = Lora("zero", {k: replace(v, up=torch.zeros_like(v.up)) for k, v in lora.layers.items()})
    assert fingerprint(zero) == 0
