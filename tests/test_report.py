"""The report: every layer is merged, passed or skipped with a reason, and nothing disappears."""

from dataclasses import replace

import pytest
import torch

from merge_ops import Lora, LowRank
from merge_ops.merging import merge


def single(name, *rows, layer="layer"):
    """A LoRA whose one delta is given by its rows, at full rank."""
    matrix = torch.tensor(rows)
    return Lora(name, {layer: LowRank(matrix, torch.eye(matrix.shape[1]))})


def test_ranks_and_numbers_of_loras(stack):
    report = merge(stack, None, "ties").report
    rows = {row.name: row for row in report.layers}
    assert sorted(rows["embed"].ranks_in) == [2, 4, 4, 7] and rows["embed"].loras == 4
    assert sorted(rows["conv"].ranks_in) == [2, 4, 7] and rows["conv"].loras == 3
    assert all(row.rank_out is None and row.energy_kept == 1.0 for row in report.layers), "full rank, exact"
    assert {row.rank_out for row in merge(stack).report.layers} == {17, 13}
    assert {row.status for row in report.layers} == {"merged"}
    assert report.counts() == {"merged": 6} and report.warnings == ()


def test_sign_conflict_is_the_share_of_opposed_entries():
    one = single("one", [1.0, -2.0, 3.0, 0.0], [1.0, 1.0, 1.0, 1.0])
    two = single("two", [-1.0, -2.0, 3.0, 5.0], [1.0, -9.0, -9.0, 1.0])
    assert merge([one, two]).report.layers[0].sign_conflict == 3 / 8
    assert merge([one, one]).report.layers[0].sign_conflict == 0
    assert merge([one]).report.layers[0].sign_conflict is None


def test_sign_conflict_is_measured_after_trimming():
    one = single("one", [1.0, -2.0, 3.0, 4.0])
    two = single("two", [-7.0, 2.0, -3.0, 8.0])
    assert merge([one, two], None, "ties", density=1.0).report.layers[0].sign_conflict == 3 / 4
    # kept: one [3, 4], two [-7, 8]
    assert merge([one, two], None, "ties", density=0.5).report.layers[0].sign_conflict == 0


def test_sign_conflict_of_random_loras_is_half(make_lora):
    pair = [make_lora(n, shapes={"layer": (500, 400)}, rank=16, seed=i) for i, n in enumerate("ab")]
    exact = (
        (pair[0].layers["layer"].delta().sign() * pair[1].layers["layer"].delta().sign() < 0).double().mean()
    )
    assert merge(pair).report.layers[0].sign_conflict == pytest.approx(float(exact), abs=0.05)


def test_what_cannot_be_merged_is_listed_with_its_file_and_reason(make_lora):
    one = make_lora(
        "one", seed=1, unmerged={"odd.layer": "T-LoRA, which cannot be merged", "x.y": "unrecognised key"}
    )
    two = make_lora("two", seed=2, warnings=("the prefix 'unet' is doubled",))
    report = merge([one, two]).report
    assert report.counts() == {"merged": 6, "skipped": 2}
    skipped = {row.name: row.reason for row in report.layers if row.status == "skipped"}
    assert skipped == {"odd.layer": "one: T-LoRA, which cannot be merged", "x.y": "one: unrecognised key"}
    assert report.warnings == ("two: the prefix 'unet' is doubled",)


def test_loras_that_share_no_layer_are_a_warning(make_lora):
    one = make_lora("one", shapes={"a": (5, 4)})
    two = make_lora("two", shapes={"b": (5, 4)})
    both = make_lora("both", shapes={"a": (5, 4), "b": (5, 4)})
    report = merge([one, two, both]).report
    assert report.warnings == ("one and two share no layer, so nothing is merged between them",)
    assert report.counts() == {"merged": 2}


def test_a_report_is_plain_data(stack):
    found = merge(stack, None, "ties", rank=2).report.to_dict()
    assert found["layers"][0]["status"] == "merged" and found["layers"][0]["rank_out"] == 2
    assert 0 < found["layers"][0]["energy_kept"] < 1 and 0 < found["layers"][0]["sign_conflict"] < 1


def test_energy_of_two_truncations_multiplies(make_lora):
    """A result that is truncated once more reports what is left of the original."""
    loras = [make_lora(n, shapes={"layer": (60, 50)}, rank=6, seed=i) for i, n in enumerate("ab")]
    once = merge(loras, None, "ties", rank=10).layer("layer")
    twice = once.truncated(3, None, torch.float32)
    exact = merge(loras, None, "ties").delta("layer").double()
    share = float(twice.matrix().double().norm() / exact.norm()) ** 2
    assert twice.energy_kept == pytest.approx(share, abs=1e-5)
    assert replace(once, energy_kept=0.5).truncated(10, None, torch.float32).energy_kept == pytest.approx(0.5)
