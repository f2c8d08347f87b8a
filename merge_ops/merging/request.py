"""What is asked of a merge: one record, checked once, then handed down and kept by the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import methods as _methods  # noqa: F401  (registers every method)
from ..blocks import BlockStrengths, block_strengths
from ..errors import ParameterError, did_you_mean
from ..lora import Lora
from ..methods.peft_names import COMBINATION_TYPES, SPACES, CombinationType, get_combination_type
from ..methods.registry import Method, get_method
from ..names.parts import is_text
from ..readers import READERS
from .rank_rule import RankRule
from .step_distilled import is_step_distilled

_PEFT_PARAMS = ("density", "majority_sign_method")


@dataclass(frozen=True, slots=True)
class Settings:
    """How one layer is merged: the part of a request that is the same for every layer."""

    method: Method
    params: dict[str, Any]  # every parameter of the method, checked
    space: str
    rank: int | None  # None keeps the exact result
    scale: float
    seed: int
    svd_clamp: float | None = None  # PEFT's: a quantile at which the factors of an SVD are clipped

    @classmethod
    def of(
        cls, method: str, params: dict[str, Any], *, space: str = "delta", rank: int | None = None,
        scale: float = 1.0, seed: int = 0, svd_clamp: float | None = None,
    ) -> Settings:  # fmt: skip
        """Return checked settings, with the method's defaults filled in.

        Raises:
            UnknownMethodError, ParameterError: for a value that is not allowed.
        """
        if space not in SPACES:
            raise ParameterError(f"unknown space {space!r}{did_you_mean(str(space), SPACES)}")
        if isinstance(rank, RankRule):
            raise ParameterError("a merge takes a rank; give a RankRule to save, or to truncated")
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
            raise ParameterError(
                f"rank must be a whole number of 1 or more, or None for the exact result, not {rank!r}"
            )
        if not math.isfinite(scale):
            raise ParameterError(f"scale is {scale}; give a finite number")
        if svd_clamp is not None and not 0 <= svd_clamp <= 1:
            raise ParameterError(f"svd_clamp {svd_clamp} is outside [0, 1]")
        chosen = get_method(method)
        if space == "factors" and chosen.kind != "entrywise":
            raise ParameterError(
                f"{method} works on whole deltas; it has no space='factors', so leave it out"
            )
        return cls(chosen, chosen.resolve(params), space, rank, float(scale), int(seed), svd_clamp)

    def of_sum(self) -> Settings:
        """Return the settings with which LoRAs are added, whatever the method."""
        return replace(self, method=get_method("linear"), params={}, space="delta")


@dataclass(frozen=True, slots=True)
class Request:
    """Everything asked of one merge, checked. Entry ``i`` of each tuple belongs to LoRA ``i``.

    What it takes to run (the base model, a device, a progress callback) is not part of it.
    """

    weights: tuple[float, ...]
    text_weights: tuple[float, ...]  # used instead of ``weights`` in the layers of text encoders
    blocks: tuple[BlockStrengths | None, ...]
    settings: Settings
    combination_type: str | None = None  # PEFT's name, if the request was made with one
    reader: str = READERS[0]  # whose arithmetic base-dependent adapters follow
    keep: str | None = None  # the LoRA whose whole weights win
    cut_to: int | None = None  # the rank that the finished result was truncated to
    cut_by: RankRule | None = None  # what chose the ranks that the finished result was truncated to
    apart: tuple[bool, ...] = ()  # the LoRAs that are added after the merge of the others
    learned: dict[str, Any] | None = None  # how the result was trained, as plain data, if it was
    extracted: dict[str, Any] | None = None  # the base that it was extracted from, and how, if it was

    @classmethod
    def of(
        cls, loras: Sequence[Lora], weights: Sequence[float] | None = None, method: str | None = None, *,
        text_weights: Sequence[float] | None = None,
        blocks: Sequence[str | BlockStrengths | None] | None = None, space: str = "delta",
        rank: int | None = None, scale: float = 1.0, seed: int = 0, reader: str = READERS[0],
        keep: str | None = None, combination_type: str | None = None, svd_rank: int | None = None,
        svd_clamp: float | None = None, apart: Sequence[bool] | None = None, **params: Any,
    ) -> Request:  # fmt: skip
        """Return the request that the keywords of ``merge`` make, with defaults filled in.

        Raises:
            UnknownMethodError, ParameterError: for a value that is not allowed.
        """
        checked = _checked_weights(loras, weights)
        text = checked if text_weights is None else _checked_weights(loras, text_weights)
        strengths = _checked_blocks(loras, blocks)
        if reader not in READERS:
            raise ParameterError(f"unknown reader {reader!r}{did_you_mean(str(reader), READERS)}")
        if combination_type is None:
            if svd_rank is not None or svd_clamp is not None:
                raise ParameterError(
                    "svd_rank and svd_clamp belong to combination_type; use rank with a method"
                )
            settings = Settings.of(method or "linear", params, space=space, rank=rank, scale=scale, seed=seed)
        else:
            _refuse_mixture(method, space, rank)
            row = _peft_row(combination_type, len(loras))
            settings = Settings.of(
                row.method, _peft_params(row, params), space=row.space, scale=scale, seed=seed,
                rank=svd_rank or None if row.truncated else None,
                svd_clamp=svd_clamp if row.truncated else None,
            )  # fmt: skip
        return cls(
            checked, text, strengths, settings, combination_type, reader, keep,
            apart=_checked_apart(loras, settings, combination_type, apart),
        )  # fmt: skip

    @property
    def rank(self) -> int | None:
        """The rank of the result, whether asked for in the merge or afterwards; None if it is exact."""
        return self.cut_to or self.settings.rank

    @property
    def method_name(self) -> str:
        """The name that was asked for: PEFT's combination type, a method of ours, ``distilled`` or
        ``extracted``.
        """
        if self.learned is not None:
            return "distilled"
        if self.extracted is not None:
            return "extracted"
        return self.combination_type or self.settings.method.name

    def weight(self, index: int, layer: str) -> float:
        """Return the weight of one LoRA in a layer, without its block strength."""
        return (self.text_weights if is_text(layer) else self.weights)[index]

    def is_apart(self, index: int) -> bool:
        """Return whether a LoRA is added after the merge of the others."""
        return bool(self.apart) and self.apart[index]

    def block_strength(self, index: int, layer: str) -> float:
        """Return what multiplies the weight of one LoRA in a layer; 0 leaves the LoRA out of it."""
        strengths = self.blocks[index]
        return 1.0 if strengths is None else strengths.factor(layer)


def _checked_apart(
    loras: Sequence[Lora], settings: Settings, combination_type: str | None, apart: Sequence[bool] | None
) -> tuple[bool, ...]:
    """Which LoRAs are added after the merge: those that speed up sampling, unless it is said.

    A sum has no vote, PEFT's types and factor space are as in PEFT, and a recording knows all LoRAs.
    """
    if apart is not None and len(apart) != len(loras):
        raise ParameterError(f"{len(loras)} LoRAs need {len(loras)} entries of apart, not {len(apart)}")
    of_all = settings.method.linear or settings.method.needs_recording or settings.space == "factors"
    if of_all or combination_type is not None:
        return ()
    found = tuple(map(is_step_distilled, loras)) if apart is None else tuple(map(bool, apart))
    return found if any(found) else ()


def settle_rank(request: Request, loras: Sequence[Lora]) -> Request:
    """Return the request with PEFT's default ``svd_rank`` filled in: the largest rank of any LoRA.

    Needs the LoRAs that are merged: an adapter that is bound to the base model counts as well.
    """
    if request.combination_type is None or request.settings.rank is not None:
        return request
    if not _peft_row(request.combination_type, len(loras)).truncated:
        return request
    rank = max(lora.rank for lora in loras)
    return replace(request, settings=replace(request.settings, rank=rank))


def _peft_row(name: str, count: int) -> CombinationType:
    """PEFT merges a single adapter as ``linear``, whatever the type."""
    row = get_combination_type(name)
    return COMBINATION_TYPES["linear"] if count == 1 else row


def _peft_params(row: CombinationType, given: dict[str, Any]) -> dict[str, Any]:
    """The parameters that the type uses; as in PEFT, others of PEFT's own are ignored."""
    for name in given:
        if name not in _PEFT_PARAMS:
            hint = did_you_mean(name, (*_PEFT_PARAMS, "svd_rank", "svd_clamp"))
            raise ParameterError(f"combination_type has no parameter {name!r}{hint}")
    known = {param.name for param in get_method(row.method).params}
    return {name: value for name, value in given.items() if name in known and value is not None}


def _refuse_mixture(method: str | None, space: str, rank: int | None) -> None:
    if method is not None:
        raise ParameterError("give either method (ours) or combination_type (PEFT's), not both")
    if space != "delta":
        raise ParameterError("combination_type already determines the space; leave space out")
    if rank is not None:
        raise ParameterError("with combination_type, give the rank as svd_rank")


def _checked_weights(loras: Sequence[Lora], weights: Sequence[float] | None) -> tuple[float, ...]:
    if not loras:
        raise ParameterError("there is no LoRA to merge")
    if weights is None:
        return (1.0,) * len(loras)
    if len(weights) != len(loras):
        raise ParameterError(f"{len(loras)} LoRAs need {len(loras)} weights, but {len(weights)} were given")
    for lora, weight in zip(loras, weights, strict=True):
        if not math.isfinite(weight):
            raise ParameterError(f"the weight of {lora.name} is {weight}; give a finite number")
    return tuple(float(weight) for weight in weights)


def _checked_blocks(
    loras: Sequence[Lora], blocks: Sequence[str | BlockStrengths | None] | None
) -> tuple[BlockStrengths | None, ...]:
    if blocks is None:
        return (None,) * len(loras)
    if isinstance(blocks, str) or len(blocks) != len(loras):
        given = "one text was" if isinstance(blocks, str) else f"{len(blocks)} were"
        raise ParameterError(f"{len(loras)} LoRAs need {len(loras)} entries of blocks, but {given} given")
    strengths = []
    for lora, each in zip(loras, blocks, strict=True):
        try:
            strengths.append(block_strengths(each))
        except ParameterError as error:
            raise ParameterError(f"{lora.name}: {error}") from error
    return tuple(strengths)
