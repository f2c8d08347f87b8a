"""Calibrating: the merge that answers best to what each LoRA's layers saw, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..lora import Lora
from ..merging.merge import carry_out
from ..merging.merged import Merged
from .host import Host
from .measured import best_scale
from .moments import moments
from .recording import Recording

SCALES = (0.7, 0.85, 1.0, 1.15, 1.3)  # those that ``auto`` tries


def calibrate(
    recording: Recording, host: Host, loras: Sequence[Lora], *, scale: float | Literal["auto"] = 1.0,
    **params: float,
) -> Merged:  # fmt: skip
    """Merge by the method ``calibrated``, with the second moments of a recording.

    The same as ``merge(loras, ..., "calibrated", moments=moments(recording, host, loras))`` at the strengths
    that were recorded. One pass over the recording, no gradients.

    Args:
        recording: of these LoRAs with this base model.
        host: the base model.
        loras: the LoRAs, in any order.
        scale: multiplies the result; ``auto`` takes the one of ``SCALES`` that keeps most on held-out calls.
        params: of the method ``calibrated``.

    Raises:
        IncompatibleLoraError: if the recording is of other LoRAs, or was made with another base model.
    """
    seen = moments(recording, host, loras)
    loras = recording.match(loras)

    def merge_at(scale: float) -> Merged:
        request = recording.request(loras, "calibrated", scale, **params)
        return carry_out(request, loras, host.base, moments=seen)

    if scale == "auto":
        scale, _ = best_scale(recording, host, merge_at, SCALES)
    return merge_at(scale)
