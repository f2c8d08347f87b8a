"""Devices that a merge can compute on."""

from __future__ import annotations

from functools import cache

import torch

from ..errors import ParameterError


def usable_device(given: torch.device | str | None) -> torch.device | None:
    """Return the torch device that is meant, after it has computed something; None for None.

    Raises:
        ParameterError: if this machine or torch does not have it, or computes nothing on it (``meta``).
    """
    if given is None:
        return None
    try:
        device = torch.device(given)
        usable = device.type != "meta" and _computes(device)
    except (RuntimeError, AssertionError, ImportError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ParameterError(f"the device {str(given)!r} is not available: {reason}") from error
    if not usable:
        raise ParameterError(
            f"nothing can be computed on the device {str(given)!r}; choose another, such as cpu or cuda"
        )
    return device


@cache
def _computes(device: torch.device) -> bool:
    """Whether one and one is two there; asked once for each device, since the answer waits for it."""
    return float(torch.ones(1, device=device).add_(1).cpu()) == 2
