"""A LoRA's fingerprint follows its delta, and nothing else of it."""

import tracemalloc
from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from merge_ops import Lora, load
from merge_ops.merging.fingerprint import DIRECTIONS, fingerprint, nearest, sketch


def rounded(lora, dtype):
    layers = {k: replace(v, up=v.up.to(dtype), down=v.down.to(dtype)) for k, v in lora.layers.items()}
    return replace(lora, name="rounded", layers=layers)


def angle(a, b):
    return float(a @ b / ((a @ a) * (b @ b)) ** 0.5)


def test_it_is_a_direction_and_the_same_every_time(make_lora):
    marks = [fingerprint(make_lora(seed=7)) for _ in range(3)]
    assert len(set(marks)) == 1 and 0 <= marks[0] < DIRECTIONS


def test_file_name_factors_rank_and_alpha_do_not_matter(make_lora, refactored):
    for seed in range(20):
        lora = make_lora(seed=seed, rank=3, alpha=8)
        assert fingerprint(refactored(lora, name="other", pad=seed % 4, seed=seed)) == fingerprint(lora)


def test_order_of_the_layers_and_a_factor_do_not_matter(make_lora):
    lora = make_lora(seed=1)
    turned = Lora("turned", dict(reversed(lora.layers.items())))
    for factor in (3.7, 1e-6, -1.0):
        scaled = Lora("scaled", {k: v.scaled(factor) for k, v in lora.layers.items()})
        assert fingerprint(turned) == fingerprint(scaled) == fingerprint(lora)
    assert (sketch(scaled) == -sketch(lora)).all()


@pytest.mark.parametrize(("dtype", "of_300"), [(torch.float16, 2), (torch.bfloat16, 6)])
def test_half_precision_rarely_changes_it(dtype, of_300, make_lora):
    """It does only where two directions are about equally close; the sketch itself moves by the rounding."""
    loras = [make_lora(seed=seed) for seed in range(300)]
    assert sum(fingerprint(rounded(lora, dtype)) != fingerprint(lora) for lora in loras) <= of_300
    assert min(angle(sketch(rounded(lora, dtype)), sketch(lora)) for lora in loras[:30]) > 1 - 1e-4


def test_different_loras_differ(make_lora):
    """300 random LoRAs and 1024 directions: 40 of them are expected to meet another one."""
    marks = Counter(fingerprint(make_lora(seed=seed)) for seed in range(300))
    assert sum(count - 1 for count in marks.values()) <= 60


def test_the_sketch_keeps_angles(make_lora):
    """Of LoRAs with nothing in common, of some that are alike, and of a LoRA beside its opposite."""
    a, b = make_lora(seed=1), make_lora(seed=2)
    for share, wanted in ((0.0, 1.0), (1.0, 0.7), (-1.0, 0.7)):
        mixed = Lora(
            "mixed",
            {
                k: replace(
                    v,
                    up=torch.cat((v.up, share * b.layers[k].up), 1),
                    down=torch.cat((v.down, b.layers[k].down)),
                )
                for k, v in a.layers.items()
            },
        )
        assert angle(sketch(mixed), sketch(a)) == pytest.approx(wanted, abs=0.1)
    assert abs(angle(sketch(a), sketch(b))) < 0.15


def test_a_full_matrix_has_the_sketch_of_its_factors(make_lora):
    lora = make_lora(seed=3)
    full = {
        k: replace(v, up=v.delta().reshape(v.matrix_shape), down=torch.eye(v.matrix_shape[1]), scale=1.0)
        for k, v in lora.layers.items()
        if v.layout == "linear"
    }
    same = Lora("same", {k: lora.layers[k] for k in full})
    assert angle(sketch(Lora("full", full)), sketch(same)) == pytest.approx(1, abs=1e-10)


def test_every_layer_of_a_small_lora_counts(make_lora):
    lora = make_lora(seed=1)
    for name, layer in lora.layers.items():
        without = Lora("x", {**lora.layers, name: layer.scaled(0.0)})
        assert angle(sketch(without), sketch(lora)) < 1 - 1e-4, name


def test_only_some_layers_of_a_large_one_are_read(make_lora):
    shapes = {f"layer{i:03}": (6, 5) for i in range(500)}
    lora = make_lora(shapes=shapes, seed=2)
    names = sorted(shapes)
    read = set(names[::16])
    rest = Lora("rest", {k: v if k in read else v.scaled(9.0) for k, v in lora.layers.items()})
    assert len(read) == 32 and (sketch(rest) == sketch(lora)).all()


def test_ties_are_settled_by_place_and_zero_has_a_fingerprint(make_lora):
    """Components that differ by rounding only: a LoRA of equal entries has many."""
    lora = make_lora(seed=1)
    zero = Lora("zero", {k: replace(v, up=torch.zeros_like(v.up)) for k, v in lora.layers.items()})
    assert fingerprint(zero) == 0
    components = sketch(lora)
    components[[5, 9]] = 3 * abs(components).max() * torch.tensor([1 - 1e-9, -1.0]).double().numpy()
    assert nearest(components) == 5


@pytest.mark.parametrize("rows", [100, 40_000])
def test_a_tall_tensor_takes_little_memory(rows, tmp_path):
    """Of what depends on the base model every row counts, some at a time: numpy's memory, traced."""
    name, path = "lora_unet_conv_in", tmp_path / "x.safetensors"
    tensors = {"oft_blocks": torch.ones(rows // 4, 4, 4), "rescale": torch.arange(1.0, rows + 1)[:, None]}
    save_file({f"{name}.{end}": tensor for end, tensor in tensors.items()}, path)
    lora = load(path)
    changed = tensors["rescale"].clone()
    changed[-1] *= 2
    save_file({f"{name}.oft_blocks": tensors["oft_blocks"], f"{name}.rescale": changed}, path)
    other = load(path)
    tracemalloc.start()
    whole = sketch(lora)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20, peak >> 20
    assert (whole != sketch(other)).any(), "the last row counts"
