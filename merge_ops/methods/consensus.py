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

_SIGN, _ONE = -(2**31), 0x3F800000  # bits of a float32: the sign alone, and 1.0

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
    if total.dtype != torch.float32:
        return torch.copysign(total.new_ones(()), total, out=total)
    # the bits of 1 with the sign of the total: two quick passes, where copysign is a slow one
    total.view(torch.int32).bitwise_and_(_SIGN).bitwise_or_(_ONE)
    return total


def average_agreeing(
    deltas: Tensor, signs: Tensor, weights: Tensor, overwrite: bool = False, out: Tensor | None = None
) -> Tensor:
    """Return the weighted sum of the entries that have the elected sign, divided by their number.

    ``deltas`` is ``(n, ..., out, in)``, ``signs`` and the result are ``(..., out, in)``. Uses the deltas up
    with ``overwrite``. The result is in ``out`` if that is given.
    """
    own = deltas.mul_(signs) if overwrite else deltas * signs
    own.relu_()  # the magnitude of what has the elected sign
    first, *others = weights.tolist()
    if len(own) == 2:
        one, other = own.unbind()
        both = torch.minimum(one, other).sign_()
        pair = one.mul_(first).add_(other, alpha=others[0])
        # half of it where both agree: as exact as a division, without a count
        pair.addcmul_(pair, both, value=-0.5)
        return torch.mul(pair, signs, out=pair if out is None else out)
    total: Tensor = own[0] * first
    for magnitude, weight in zip(own[1:].unbind(), others, strict=True):
        total.add_(magnitude, alpha=weight)
    count, *rest = own.sign_().unbind()
    for each in rest:
        count.add_(each)
    return torch.div(total.mul_(signs), count.clamp_min_(1), out=total if out is None else out)
