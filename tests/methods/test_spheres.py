"""Slerp, Karcher mean and mean on dense matrices, by the textbook formulas."""

import math

import pytest
import torch

from merge_ops import Lora, LowRank
from merge_ops.merging import merge
from tests.methods.dense import assert_near, matrices, random_loras


def dense_slerp(start, end, t):
    angle = math.acos(float((start * end).sum() / start.norm() / end.norm()))
    return (math.sin((1 - t) * angle) * start + math.sin(t * angle) * end) / math.sin(angle)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_slerp_of_two_is_mergekits(t):
    """At weights (1 - t, t), up to the factor that keeps strengths absolute."""
    loras = random_loras(2)
    found = merge(loras, [1 - t, t], "slerp").delta("layer") / max(t, 1 - t)
    assert_near(found, dense_slerp(*matrices(loras), t))


def test_slerp_of_three_goes_from_one_to_the_next():
    loras, (a, b, c) = random_loras(3), matrices(random_loras(3))
    found = merge(loras, [1.0, -0.5, 0.5], "slerp").delta("layer")
    assert_near(found, dense_slerp(dense_slerp(a, -b, 1 / 3), c, 0.25))


def test_slerp_keeps_the_size():
    """Half way between two of the same size, where a mean would be shorter."""
    loras = random_loras(2)
    a, b = matrices(loras)
    loras[1] = Lora("b", {"layer": loras[1].layers["layer"].scaled(float(a.norm() / b.norm()))})
    size = float(merge(loras, None, "slerp").delta("layer").norm())
    assert size == pytest.approx(float(a.norm()), rel=1e-5)
    assert float(merge(loras, None, "mean").delta("layer").norm()) < 0.9 * size


def test_slerp_of_nearly_parallel_ones_is_straight():
    (lora,) = random_loras(1)
    other = Lora("other", {"layer": lora.layers["layer"].scaled(3.0)})
    assert_near(merge([lora, other], [0.5, 0.5], "slerp").delta("layer"), matrices([lora])[0])
    opposed = Lora("opposed", {"layer": lora.layers["layer"].scaled(-3.0)})
    assert_near(merge([lora, opposed], [1.0, 1.0], "slerp").delta("layer"), -matrices([lora])[0])


def test_slerp_with_a_lora_of_weight_zero_is_without_it():
    loras = random_loras(3)
    assert_near(
        merge(loras, [1.0, 0.0, 0.5], "slerp").delta("layer"),
        merge([loras[0], loras[2]], [1.0, 0.5], "slerp").delta("layer").double(),
    )


def test_karcher_is_where_the_ways_to_all_cancel():
    """The defining property: the weighted mean of the tangents towards the LoRAs is zero."""
    loras, weights = random_loras(4), [0.5, 1.0, -0.25, 0.75]
    found = merge(loras, weights, "karcher").delta("layer").double()
    units = [w / abs(w) * m / m.norm() for m, w in zip(matrices(loras), weights, strict=True)]
    u, total = found / found.norm(), torch.zeros_like(found)
    for unit, weight in zip(units, weights, strict=True):
        cosine = float((u * unit).sum())
        angle = math.acos(cosine)
        total += abs(weight) * angle / math.sin(angle) * (unit - cosine * u)
    assert float(total.norm()) < 1e-5
    shares = [abs(w) / 2.5 for w in weights]
    size = sum(s * float(m.norm()) for s, m in zip(shares, matrices(loras), strict=True))
    assert float(found.norm()) == pytest.approx(size, rel=1e-5)


def test_karcher_of_two_equal_ones_is_slerp_half_way():
    loras = random_loras(2)
    a, b = matrices(loras)
    middle = dense_slerp(a / a.norm(), b / b.norm(), 0.5) * (a.norm() + b.norm()) / 2
    assert_near(merge(loras, None, "karcher").delta("layer"), middle)


def test_karcher_of_opposites_is_one_of_them():
    (lora,) = random_loras(1)
    other = Lora("other", {"layer": lora.layers["layer"].scaled(-1.0)})
    found = merge([lora, other], None, "karcher").delta("layer").double()
    assert float(found.norm()) == pytest.approx(float(matrices([lora])[0].norm()), rel=1e-5)


def test_mean_counts_who_has_a_weight():
    loras = random_loras(3)
    assert_near(
        merge(loras, [1.0, 0.5, -0.4], "mean").delta("layer"), matrices(loras, [1.0, 0.5, -0.4]).mean(0)
    )
    assert_near(merge(loras, [1.0, 0.5, 0.0], "mean").delta("layer"), matrices(loras[:2], [1.0, 0.5]).mean(0))


@pytest.mark.parametrize("method", ["slerp", "karcher", "mean"])
def test_a_zero_lora_takes_part_without_harm(method):
    """As a point of length zero: no NaN, and nothing of it in the result."""
    loras = random_loras(2)
    zero = Lora("zero", {"layer": LowRank(torch.zeros(9, 2), torch.ones(2, 7), 1.0, "linear", (), "layer")})
    found = merge([*loras, zero], None, method).delta("layer")
    assert found.isfinite().all() and found.any()
