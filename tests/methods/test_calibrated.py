"""Calibrated against least squares on the recorded inputs themselves, without any Gram matrix."""

import pytest
import torch

from merge_ops import IncompatibleLoraError, ParameterError
from merge_ops.merging import merge
from merge_ops.merging.align import align
from merge_ops.merging.cores import stacked_factors
from merge_ops.merging.request import Request
from tests.methods.dense import DOUBLE, assert_near, matrices, random_loras, thin_svd

WEIGHTS = [0.7, -0.4, 1.3]


def recorded(loras, seed=1, count=60):
    """Inputs of the layer for each LoRA, ``(in, inputs)``, which prefer other directions for each."""
    generator = torch.Generator().manual_seed(seed)
    columns = loras[0].layers["layer"].down.shape[1]
    return [
        torch.randn(columns, columns, dtype=DOUBLE, generator=generator)
        @ torch.randn(columns, count, dtype=DOUBLE, generator=generator)
        for _ in loras
    ]


def moments_of(loras, inputs, weights=None):
    """What a recording gathers: the mean of ``z z.T``, ``z = stacked_down @ x``, per part."""
    (aligned,) = align(loras, Request.of(loras, weights))
    _, down, _ = stacked_factors(aligned, None)
    seen = [down.double() @ inputs[index] for index in aligned.indices]
    return {"layer": torch.stack([z @ z.T / z.shape[1] for z in seen])}


def dense_calibrated(loras, weights, inputs, ridge):
    """Rows of ``[z; ridge rows]`` with the answers that each LoRA alone gives, by a dense solver."""
    svds = [thin_svd(term) for term in matrices(loras)]
    u = torch.cat([w * each[0] * each[1] for each, w in zip(svds, weights, strict=True)], dim=1)
    v = torch.cat([vh for *_, vh in svds])
    rank, start = v.shape[0], 0
    rows, answers, diagonal = [], [], torch.zeros(rank, dtype=DOUBLE)
    for (_, s, _), weight, x in zip(svds, weights, inputs, strict=True):
        z = v @ x / x.shape[1] ** 0.5
        z = z * (abs(weight) / max(map(abs, weights)) * rank / float(z.square().sum())) ** 0.5
        own = torch.zeros(rank, dtype=DOUBLE)
        own[start : start + len(s)] = 1
        start += len(s)
        rows.append(z.T)
        answers.append((own[:, None] * z).T)
        diagonal += z.square().sum(1)
    spare = (ridge * float(diagonal.mean())) ** 0.5 * torch.eye(rank, dtype=DOUBLE)
    core = torch.linalg.lstsq(torch.cat([*rows, spare]), torch.cat([*answers, spare])).solution.T
    return u @ core @ v


@pytest.mark.parametrize("ridge", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_against_least_squares(count, ridge):
    loras, weights = random_loras(count, shape=(9, 11)), WEIGHTS[:count]
    inputs = recorded(loras)
    found = merge(loras, weights, "calibrated", ridge=ridge, moments=moments_of(loras, inputs, weights))
    assert_near(found.delta("layer"), dense_calibrated(loras, weights, inputs, ridge))


def test_each_lora_answers_its_own_inputs():
    """With inputs in which the LoRAs do not meet, and hardly a ridge, each acts there as it does alone."""
    loras = random_loras(2, shape=(9, 11))
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(11, 11, dtype=DOUBLE, generator=generator))[0]
    inputs = [basis[:, :2] @ torch.randn(2, 30, dtype=DOUBLE, generator=generator),
              basis[:, 2:5] @ torch.randn(3, 30, dtype=DOUBLE, generator=generator)]  # fmt: skip
    found = merge(loras, None, "calibrated", ridge=0.001, moments=moments_of(loras, inputs)).delta("layer")
    deltas, added = matrices(loras), matrices(loras).sum(0)
    for delta, x in zip(deltas, inputs, strict=True):
        assert (found.double() @ x - delta @ x).norm() < 0.1 * (added @ x - delta @ x).norm()


def test_weight_zero_leaves_out():
    loras, weights = random_loras(3, shape=(9, 11)), [0.7, -0.4, 0.0]
    inputs = recorded(loras)
    found = merge(loras, weights, "calibrated", moments=moments_of(loras, inputs, weights))
    wanted = merge(
        loras[:2], weights[:2], "calibrated", moments=moments_of(loras[:2], inputs[:2], weights[:2])
    )
    assert_near(found.delta("layer"), wanted.delta("layer").double())


def test_how_large_the_inputs_are_does_not_matter():
    loras = random_loras(2, shape=(9, 11))
    inputs = recorded(loras)
    found = [
        merge(loras, None, "calibrated", moments=moments_of(loras, each)).delta("layer")
        for each in (inputs, [1e4 * inputs[0], 1e-3 * inputs[1]])
    ]
    assert_near(found[0], found[1].double())


def test_inputs_that_are_all_zero_leave_the_sum():
    loras = random_loras(2)
    moments = {"layer": torch.zeros(2, 5, 5)}
    assert_near(merge(loras, None, "calibrated", moments=moments).delta("layer"), matrices(loras).sum(0))


def test_a_layer_that_was_not_recorded_is_added():
    """And the report says so."""
    loras = random_loras(2)
    merged = merge(loras, [0.7, -0.4], "calibrated", moments={})
    assert_near(merged.delta("layer"), matrices(loras, [0.7, -0.4]).sum(0))
    assert merged.report.layers[0].reason == "not in the recording, so the LoRAs are added"


def test_without_a_recording_it_says_what_is_missing():
    with pytest.raises(ParameterError, match="calibrated needs a recording"):
        merge(random_loras(2), None, "calibrated")


@pytest.mark.parametrize(
    ("moments", "says"),
    [
        (torch.zeros(2, 4, 4), r"have the shape \(2, 4, 4\) where \(2, 5, 5\) is needed"),
        (torch.full((2, 5, 5), torch.nan), "contain NaN or infinity"),
    ],
)
def test_a_recording_of_something_else_is_refused(moments, says):
    with pytest.raises((IncompatibleLoraError, ParameterError), match=says):
        merge(random_loras(2), None, "calibrated", moments={"layer": moments})
