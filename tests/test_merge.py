"""What ``merge`` accepts, refuses and reports, and that a result is made only where it is asked for."""

from dataclasses import replace

import pytest
import torch

from merge_ops import (
    METHODS,
    IncompatibleLoraError,
    Lora,
    LowRank,
    MergeError,
    ParameterError,
    UnknownMethodError,
)
from tests.laws import merge, skip_if_broken


@pytest.fixture
def pair(make_lora):
    return [make_lora("first", rank=3, alpha=6, seed=1), make_lora("second", rank=5, alpha=2, seed=2)]


def relative(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_is_merged_among_those_that_have_it(method, pair):
    """Weights are not shared out anew, and a layer of one LoRA only is that LoRA's."""
    skip_if_broken(method, "full")
    pair[1].layers.pop("conv")
    params = {"density": 1.0} if any(p.name == "density" for p in METHODS[method].params) else {}
    merged = merge(pair, [0.7, -0.4], method, **params)
    assert set(merged.layers) == set(pair[0].layers)
    assert relative(merged.delta("conv"), 0.7 * pair[0].layers["conv"].delta()) < 1e-6
    assert [row.loras for row in merged.report.layers if row.name == "conv"] == [1]


def test_layers_are_in_counting_order(pair):
    names = list(merge(pair).layers)
    assert names.index("block.2.fc") < names.index("block.10.fc")
    assert names == list(merge(pair[::-1]).layers)


@pytest.mark.parametrize("method", METHODS)
def test_delta_space_takes_mixed_ranks_and_gives_the_shape_of_the_weight(method, pair):
    merged = merge(pair, None, method)
    for name in merged.layers:
        assert merged.delta(name).shape == pair[0].layers[name].weight_shape
    assert merged.delta("conv").shape == (16, 5, 3, 3)
    assert merged.delta("pointwise").shape == (12, 10, 1, 1)
    assert merged.delta("embed").shape == (30, 14), "an embedding's delta is transposed"
    assert merged.delta("c_attn").shape == (18, 26)


def test_a_pointwise_convolution_meets_a_linear_layer(make_lora):
    """Files disagree on whether a 1 x 1 convolution has a kernel; it is the same matrix."""
    conv = make_lora("conv", shapes={"proj": ("conv", 12, 10, (1, 1))}, seed=1)
    flat = make_lora("flat", shapes={"proj": (12, 10)}, seed=2)
    merged = merge([conv, flat])
    wanted = conv.layers["proj"].delta().flatten(1) + flat.layers["proj"].delta()
    torch.testing.assert_close(merged.delta("proj").flatten(1), wanted)


def test_factor_space_needs_equal_ranks_and_says_what_does_not(pair):
    with pytest.raises(IncompatibleLoraError, match=r"block.2.fc: the ranks differ \(3, 5\).*space='delta'"):
        merge(pair, space="factors")
    for name in list(pair[1].layers):
        if name != "embed":
            pair[1].layers.pop(name)
    with pytest.raises(IncompatibleLoraError, match="embed: the ranks differ"):
        merge(pair, space="factors", method="ties")


@pytest.mark.parametrize(
    "other",
    [("linear", 40, 29, ()), ("linear", 41, 28, ()), ("conv", 40, 28, (2, 2)), ("embedding", 40, 28, ())],
)
def test_shapes_that_disagree_are_refused_with_both_names(other, make_lora):
    one = make_lora("one", shapes={"fc": (40, 28)})
    two = make_lora("two", shapes={"fc": other})
    with pytest.raises(
        IncompatibleLoraError, match=r"fc has the shape \(40, 28\) in one and .* in two"
    ) as error:
        merge([one, two])
    assert str(two.layers["fc"].weight_shape) in str(error.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "2 LoRAs need 2 weights, but 1 were given"),
        ([1.0, 1.0, 1.0], "2 LoRAs need 2 weights, but 3 were given"),
        ([1.0, float("nan")], "the weight of second is nan"),
        ([float("inf"), 1.0], "the weight of first is inf"),
    ],
)
def test_weights_are_checked(pair, weights, message):
    with pytest.raises(ParameterError, match=message):
        merge(pair, weights)


def test_no_lora_is_refused():
    with pytest.raises(ParameterError, match="there is no LoRA to merge"):
        merge([])


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (UnknownMethodError, {"method": "tise"}, "did you mean 'ties'"),
        (UnknownMethodError, {"combination_type": "tie_svd"}, "did you mean 'ties_svd'"),
        (ParameterError, {"space": "factor"}, "unknown space 'factor' .*did you mean 'factors'"),
        (ParameterError, {"method": "ties", "densty": 0.5}, "did you mean 'density'"),
        (ParameterError, {"density": 0.5}, "linear takes no parameters"),
        (ParameterError, {"method": "ties", "density": 1.5}, r"ties: density 1.5 is outside \[0, 1\]"),
        (ParameterError, {"method": "ties", "majority_sign_method": "count"}, "'count' is not a choice"),
        (ParameterError, {"combination_type": "ties", "densty": 0.5}, "did you mean 'density'"),
        (ParameterError, {"combination_type": "ties", "density": 1.5}, "density 1.5 is outside"),
        (ParameterError, {"combination_type": "ties", "method": "ties"}, "not both"),
        (ParameterError, {"combination_type": "svd", "space": "factors"}, "leave space out"),
        (ParameterError, {"combination_type": "svd", "rank": 4}, "give the rank as svd_rank"),
        (ParameterError, {"combination_type": "svd", "svd_rank": -1}, "rank"),
        (ParameterError, {"combination_type": "svd", "svd_clamp": 1.5}, "svd_clamp 1.5 is outside"),
        (ParameterError, {"svd_rank": 4}, "svd_rank and svd_clamp belong to combination_type"),
        (ParameterError, {"rank": 0}, "rank must be a whole number of 1 or more"),
        (ParameterError, {"rank": 2.0}, "rank must be a whole number of 1 or more"),
        (ParameterError, {"rank": True}, "rank must be a whole number of 1 or more"),
        (ParameterError, {"scale": float("nan")}, "scale is nan"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_way_out(pair, error, arguments, message):
    with pytest.raises(error, match=message):
        merge(pair, **arguments)


def test_an_unknown_layer_is_refused_with_a_suggestion(pair):
    with pytest.raises(MergeError, match=r"no merged layer is called 'con' \(did you mean 'conv'\?\)"):
        merge(pair).delta("con")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, None])
def test_dtype_is_that_of_the_result_and_work_is_in_float32(pair, dtype):
    halves = [replace(x, layers={k: replace(v, up=v.up.half()) for k, v in x.layers.items()}) for x in pair]
    exact = merge(halves, [0.3, 0.9], "ties")
    merged = merge(halves, [0.3, 0.9], "ties", dtype=dtype)
    low_rank = merge(halves, [0.3, 0.9], rank=2, dtype=dtype)
    for name in merged.layers:
        assert exact.delta(name).dtype == torch.float32
        assert merged.delta(name).dtype == (dtype or torch.float32)
        assert torch.equal(merged.delta(name), exact.delta(name).to(dtype or torch.float32))
        assert torch.equal(exact.delta(name, dtype=torch.float16), exact.delta(name).half())
        assert {t.dtype for t in low_rank.factors(name)} == {dtype or torch.float32}


def test_progress_is_called_for_every_layer_and_at_the_end(pair):
    calls = []
    names = merge(pair, None, "ties", progress=lambda *call: calls.append(call)).layers
    assert calls == [(i, 6, name) for i, name in enumerate(names)] + [(6, 6, "")]


def test_an_exception_from_progress_ends_the_merge(pair):
    class Cancelled(Exception):
        pass

    calls = []

    def cancel(done, total, name):
        calls.append(done)
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        merge(pair, progress=cancel)
    assert calls == [0, 1, 2]


def test_linear_never_forms_a_delta(make_lora):
    """200000 x 200000 would be 160 GB: merging, factors, truncation and the report work on the factors."""
    size = 200_000
    loras = [make_lora(n, shapes={"vast": (size, size)}, rank=2, seed=i) for i, n in enumerate("ab")]
    merged = merge(loras, [0.7, -0.4], scale=2.0)
    up, down = merged.factors("vast")
    assert up.shape == (size, 4) and down.shape == (4, size)
    row = 2.0 * sum(
        w * x.layers["vast"].up[:1] @ x.layers["vast"].down for w, x in zip((0.7, -0.4), loras, strict=True)
    )
    torch.testing.assert_close(up[:1] @ down, row)
    assert merged.report.layers[0].rank_out == 4
    truncated = merge(loras, [0.7, -0.4], rank=3)
    assert truncated.factors("vast")[0].shape == (size, 3)
    assert 0.5 < truncated.report.layers[0].energy_kept < 1
    peft = merge(loras, [0.7, -0.4], combination_type="svd", svd_rank=4)
    torch.testing.assert_close(
        2 * peft.factors("vast")[0][:1] @ peft.factors("vast")[1], row, rtol=1e-3, atol=1e-5
    )


def test_sources_are_left_as_they_are(pair):
    before = {(x.name, k): v.up.clone() for x in pair for k, v in x.layers.items()}
    for method in METHODS:
        merged = merge(pair, [0.7, -0.3], method, rank=2, scale=3.0)
        merged.delta("conv").mul_(100.0)
        merged.report.to_dict()
    assert all(torch.equal(before[x.name, k], v.up) for x in pair for k, v in x.layers.items())


def test_lora_rank_is_the_largest(pair):
    mixed = Lora("mixed", {"a": LowRank(torch.zeros(4, 2), torch.zeros(2, 4)), **pair[1].layers})
    assert mixed.rank == 5
