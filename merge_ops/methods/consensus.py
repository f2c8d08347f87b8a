"""Settling conflicts of sign: a vote per entry, and the average of the LoRAs on the winning side.

The conventions are those of ``peft.utils.merge_utils``: the vote is taken before the weights, a tie counts as
plus, and the divisor is the number of LoRAs that agree, so weights are absolute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch

from .registry import Param

if TYPE_CHECKING:
    from torch import Tensor

# the law that every method breaks which takes a vote, and why; see ``registry.LAWS``
VOTES = {"weighting": "signs are elected before the weights apply"}

SignVote = Annotated[
    Literal["total", "frequency"],
    Param(
        (
            "Which sign wins where LoRAs disagree: 'total' follows the larger sum, 'frequency' the larger "
            "number of LoRAs."
        ),
        advanced=True,
    ),
]


def elect_signs(deltas: Tensor, majority_sign_method: str) -> Tensor:
    """Return the elected sign of each entry, +1 or -1; ``(n, ..., out, in)`` to ``(..., out, in)``.

    ``total`` goes by the sign of the sum, ``frequency`` by the sign of the sum of the signs.
    """
    votes = deltas.sign() if majority_sign_method == "frequency" else deltas
    total = torch.add(votes[0], votes[1]) if len(votes) > 1 else votes[0].clone()
    for vote in votes[2:].unbind():
        total.add_(vote)
    return torch.copysign(total.new_ones(()), total, out=total)


def average_agreeing(deltas: Tensor, signs: Tensor, weights: Tensor, overwrite: bool = False) -> Tensor:
    """Return the weighted sum of the entries that have the elected sign, divided by their number.

    ``deltas`` is ``(n, ..., out, in)``, ``signs`` and the result are ``(..., out, in)``. Uses the deltas up
    with ``overwrite``.
    """
    deltas = deltas if overwrite else deltas.clone()
    first, *others = weights.tolist()
    if len(deltas) == 2:
        one, other = (_magnitudes(delta, signs) for delta in deltas.unbind())
        both = torch.minimum(one, other).sign_()
        pair = one.mul_(first).add_(other, alpha=others[0])
        # half of it where both agree: as exact as a division, without a count
        return pair.addcmul_(pair, both, value=-0.5).mul_(signs)
    own = _magnitudes(deltas[0], signs)
    total: Tensor = own * first
    count = own.sign_()
    for delta, weight in zip(deltas[1:].unbind(), others, strict=True):
        total.add_(_magnitudes(delta, signs), alpha=weight)
        count.add_(delta.sign_())
    return total.mul_(signs).div_(count.clamp_min_(1))


def _magnitudes(delta: Tensor, signs: Tensor) -> Tensor:
    """The magnitude of each entry that has the elected sign, else 0; in place of the delta."""
    return delta.mul_(signs).relu_()
