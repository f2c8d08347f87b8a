"""Settling conflicts of sign: a vote per entry, and the average of the LoRAs on the winning side.

The conventions are those of ``peft.utils.merge_utils``: the vote is taken before the weights, a tie counts as
plus, and the divisor is the number of LoRAs that agree, so weights are absolute.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor

from .registry import Param

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
    by_sign = majority_sign_method == "frequency"
    total: Tensor = deltas[0].sign() if by_sign else deltas[0].clone()
    for delta in deltas[1:].unbind():
        total.add_(delta.sign() if by_sign else delta)
    return total.ge_(0).mul_(2).sub_(1)


def average_agreeing(deltas: Tensor, signs: Tensor, weights: Tensor, overwrite: bool = False) -> Tensor:
    """Return the weighted sum of the entries that have the elected sign, divided by their number.

    ``deltas`` is ``(n, ..., out, in)``, ``signs`` and the result are ``(..., out, in)``. Uses ``signs`` up,
    and with ``overwrite`` the deltas as well.
    """
    scratch = None if overwrite else torch.empty_like(signs)
    total = count = None
    for delta, weight in zip(deltas.unbind(), weights.tolist(), strict=True):
        agreeing = torch.mul(delta, signs, out=delta if scratch is None else scratch)
        agreeing.relu_()  # the magnitude where the sign is the elected one, else 0
        if total is None or count is None:
            total, count = agreeing * weight, agreeing.sign()
        else:
            total.add_(agreeing, alpha=weight)
            count.add_(agreeing.sign_())
    assert total is not None and count is not None
    average: Tensor = total.mul_(signs).div_(count.clamp_min_(1))
    return average
