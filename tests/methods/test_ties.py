"""TIES and magnitude pruning in numbers that can be followed by hand."""

import pytest
import torch
from torch import tensor

from merge_ops.methods.consensus import average_agreeing, elect_signs
from merge_ops.methods.linear import linear
from merge_ops.methods.magnitude_prune import magnitude_prune
from merge_ops.methods.sparsify import keep_largest
from merge_ops.methods.ties import ties

A = tensor([[4.0, -1.0], [2.0, 3.0]])
B = tensor([[-1.0, -2.0], [5.0, -6.0]])
C = tensor([[-2.0, 1.0], [-9.0, -1.0]])
STACK = torch.stack((A, B, C))
ONES = torch.ones(3)


def test_linear_is_the_weighted_sum():
    found = linear(STACK, tensor([0.5, 1.0, -2.0]))
    assert torch.equal(found, tensor([[5.0, -4.5], [24.0, -2.5]]))


def test_magnitude_prune_keeps_the_largest_half_of_each():
    # A keeps 4 and 3, B keeps 5 and -6, C keeps -2 and -9
    found = magnitude_prune(STACK, tensor([1.0, 10.0, 100.0]), density=0.5)
    assert torch.equal(found, tensor([[4.0 - 200.0, 0.0], [50.0 - 900.0, 3.0 - 60.0]]))


def test_total_votes_by_the_summed_values():
    # sums: 1, -2, -2, -4; who agrees: A | A, B | C | B, C
    found = ties(STACK, ONES, density=1.0, majority_sign_method="total")
    assert torch.equal(found, tensor([[4.0, -1.5], [-9.0, -3.5]]))


def test_frequency_votes_by_the_count_of_signs():
    # counts: one + and two -, two - and one +, two + and one -, one + and two -
    found = ties(STACK, ONES, density=1.0, majority_sign_method="frequency")
    assert torch.equal(found, tensor([[-1.5, -1.5], [3.5, -3.5]]))


@pytest.mark.parametrize("majority_sign_method", ["total", "frequency"])
def test_a_tied_vote_counts_as_plus(majority_sign_method):
    pair = tensor([[[3.0, -5.0]], [[-3.0, 5.0]]])
    found = ties(pair, torch.ones(2), density=1.0, majority_sign_method=majority_sign_method)
    assert torch.equal(found, tensor([[3.0, 5.0]]))


def test_the_vote_is_taken_before_the_weights():
    """A weight of -100 on one LoRA does not change who wins, only what is added."""
    found = ties(STACK, tensor([-100.0, 1.0, 1.0]), density=1.0)
    assert torch.equal(found, tensor([[-400.0, 49.0], [-9.0, -3.5]]))


def test_the_divisor_is_the_number_that_agree():
    """Two equal LoRAs at 0.5 each give half of one: weights are absolute, not shares."""
    found = ties(torch.stack((A, A)), tensor([0.5, 0.5]), density=1.0)
    assert torch.equal(found, 0.5 * A)


def test_trimmed_entries_have_no_vote_and_are_not_counted():
    # after trimming to the largest half: A = [4, 0; 0, 3], B = [0, 0; 5, -6], C = [-2, 0; -9, 0]
    found = ties(STACK, ONES, density=0.5)
    assert torch.equal(found, tensor([[4.0, 0.0], [-9.0, -6.0]]))
    by_count = ties(STACK, ONES, density=0.5, majority_sign_method="frequency")
    assert torch.equal(by_count, tensor([[4.0, 0.0], [5.0, 3.0]]))


def test_entries_on_which_all_are_zero_stay_zero():
    zeros = torch.zeros(3, 2, 2)
    for vote in ("total", "frequency"):
        assert torch.equal(average_agreeing(zeros, elect_signs(zeros, vote), ONES), torch.zeros(2, 2))


@pytest.mark.parametrize(("density", "kept"), [(0.0, 0), (0.24, 0), (0.25, 1), (0.5, 2), (0.99, 3), (1.0, 4)])
def test_density_keeps_the_whole_part_of_density_times_size(density, kept):
    assert keep_largest(A[None], density).count_nonzero() == kept


def test_ties_at_the_cut_are_all_kept():
    """PEFT keeps an arbitrary one of equal magnitudes; keeping both is what does not depend on luck."""
    level = tensor([[[1.0, -2.0], [2.0, 0.5]]])
    assert torch.equal(keep_largest(level, 0.25), tensor([[[0.0, -2.0], [2.0, 0.0]]]))


def test_given_thresholds_are_used():
    limits = tensor([4.0, 5.0, 100.0]).view(3, 1, 1)
    assert torch.equal(
        magnitude_prune(STACK, ONES, density=0.5, thresholds=limits), A * (A == 4) + B * (abs(B) > 4)
    )


def test_inputs_are_left_as_they_are():
    before = STACK.clone()
    ties(STACK, ONES, density=0.5)
    magnitude_prune(STACK, ONES, density=0.5)
    assert torch.equal(STACK, before)
