"""Parts of MODEL and CLIP: their patches, their tokens, and where the rows of a layer lie in a weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...merge_ops.errors import ParameterError
from .bypass_limits import refuse_bypassed
from .core import copy_patches, patcher_of
from .target import Target


def adopted(own: Any, given: Any, what: str) -> Any:
    """A clone of the host's part with the patches of another one of the same model."""
    refuse_another(own, given, what)
    refuse_bypassed(given, "measuring it")
    clone = own.clone()
    copy_patches(clone, given)
    return clone


def refuse_another(own: Any, given: Any, what: str) -> None:
    mine, other = patcher_of(own).model, patcher_of(given).model
    if mine is other:
        return
    shapes = [{key: weight.shape for key, weight in one.state_dict().items()} for one in (mine, other)]
    if shapes[0] != shapes[1]:
        raise ParameterError(f"this {what} is another model than the one that was recorded; record it first")


def rows(target: Target, count: int) -> slice | Tensor | None:
    """Where the rows of a layer lie in a weight of ``count`` rows."""
    if target.is_whole:
        return None
    start, length = (0, count) if target.part is None else (target.part.start, target.part.length)
    if target.function is None:
        return slice(start, start + length)
    # the function puts rows of a delta into the weight's order: entry i tells which row comes to place i
    with torch.inference_mode(False):  # it is part of what gradients pass through
        order = target.function(torch.arange(length, dtype=torch.float32)[:, None])[:, 0].long()
        return start + order.argsort()


def token_tensor(tokens: Any) -> Tensor:
    """Token numbers ``(batch, tokens)``, so that each prompt of a batch is a sample of its own."""
    if not all(isinstance(token, int) for row in tokens for token in row):
        raise ParameterError(
            "a prompt contains a textual inversion embedding, which cannot be recorded with the text "
            "encoder; leave it out of the prompts"
        )
    with torch.inference_mode(False):
        return torch.tensor(tokens, dtype=torch.long)
