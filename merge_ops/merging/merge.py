"""The merge itself: check what was asked for, line the LoRAs up layer by layer, and merge each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import methods as _methods  # noqa: F401  (registers every method)
from ..adapters import Ia3
from ..blocks import BlockStrengths, block_strengths
from ..errors import IncompatibleLoraError, ParameterError, did_you_mean
from ..lora import Lora, LowRank
from ..methods.peft_names import COMBINATION_TYPES, SPACES, get_combination_type
from ..methods.registry import get_method
from ..names.architectures import check_structure, named_alike
from .batches import batches, merge_batch
from .bind import base_weights, bind
from .ia3 import merge_ia3_apart
from .lineup import line_up
from .merged import Merged, MergedLayer
from .overflow import refuse_overflow
from .scratch import Scratch
from .spaces import AlignedLayer, Settings, find_thresholds, merge_factors
from .whole_weights import agreed

Progress = Callable[[int, int, str], None]


def merge(
    loras: Sequence[Lora],
    weights: Sequence[float] | None = None,
    method: str | None = None,
    *,
    text_weights: Sequence[float] | None = None,
    blocks: Sequence[str | BlockStrengths | None] | None = None,
    space: str = "delta",
    rank: int | None = None,
    scale: float = 1.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    base: Any = None,
    reader: str = "peft",
    keep: str | None = None,
    combination_type: str | None = None,
    svd_rank: int | None = None,
    svd_clamp: float | None = None,
    **params: Any,
) -> Merged:
    """Merge LoRAs layer by layer.

    Args:
        loras: what ``load`` returned; layers that only some of them have are merged among those.
        weights: one multiplier a LoRA, 1.0 each by default; negative is legal.
        text_weights: the multipliers for the layers of text encoders; ``weights`` by default.
        blocks: one entry a LoRA: strengths by block and sort of layer that multiply its weight, such as
            ``"down:0.5 mid:1 attn:0.8"`` (see ``merge_ops.blocks``), or None. Where the product is 0 the LoRA
            is left out of the layer, as if it had none: it has no vote there.
        method: a name of ``METHODS`` (default ``linear``); its parameters are keywords (``density``, ...).
        space: ``delta`` merges the true weight changes; ``factors`` merges up and down separately, as PEFT
            and LoRAX do, which needs equal ranks and adds cross terms.
        rank: truncate every layer to this rank; None keeps the exact result.
        scale: multiplies the whole result.
        seed: of the random masks of DARE; the same seed gives the same masks on every device.
        device: where to compute, by torch's name; None is where the tensors are. What is kept stays there.
        dtype: of the result; float32 by default. Computation is in float32.
        progress: called as ``progress(done, total, layer)``; an exception from it ends the merge.
        base: the base model, for adapters whose change depends on its weights (DoRA, GLoRA, OFT, BOFT,
            (IA)3): a safetensors file, a folder of diffusers or transformers, of which only the weights that
            are needed are read; a model or pipeline; or a function from a layer's name to its weight.
            Without it (IA)3 adapters are merged by ``linear`` only, as the factors that they are.
        reader: whose arithmetic such adapters follow where programs differ: ``peft`` (and the trainers), or
            ``comfyui``, which takes the norms of a DoRA from the weight without the LoRA.
        keep: name of the LoRA whose heads and other whole weights are kept where the LoRAs differ in them.
        combination_type: a name of PEFT's ``add_weighted_adapter`` instead of ``method``, with PEFT's
            keywords ``svd_rank``, ``svd_clamp``, ``density`` and ``majority_sign_method``; as in PEFT, those
            that a type has no use for are ignored, and a single LoRA is merged as ``linear``.

    Raises:
        UnknownMethodError, ParameterError: for what was asked.
        IncompatibleLoraError: if two LoRAs disagree about the shape of a layer or about a whole weight, or
            an adapter needs the base model and it is not given.
        MergeError: if a layer comes to NaN or infinity.
    """
    loras, weights_of_base = list(loras), base_weights(base)
    weights = _checked_weights(loras, weights)
    text_weights = weights if text_weights is None else _checked_weights(loras, text_weights)
    strengths = _checked_blocks(loras, blocks)
    scaled: dict[str, Ia3] = {}
    if base is None and combination_type is None and method in (None, "linear"):
        loras, scaled = merge_ia3_apart(loras, weights, text_weights, strengths, scale)
    loras = named_alike(bind(loras, weights_of_base, reader))
    check_structure(loras)
    replaced = agreed(loras, keep, weights_of_base)
    if combination_type is None:
        if svd_rank is not None or svd_clamp is not None:
            raise ParameterError("svd_rank and svd_clamp belong to combination_type; use rank with a method")
        settings = _settings(method or "linear", params, space, rank, scale, seed)
    else:
        _refuse_mixture(method, space, rank)
        settings = _peft_settings(loras, combination_type, svd_rank, svd_clamp, params, scale, seed)
    where = torch.device(device) if device is not None else None
    needs_identity = "generator" in settings.method.supplied
    stacks = line_up(loras, weights, text_weights, needs_identity, strengths)
    if not stacks and any(lora.layers for lora in loras):
        raise ParameterError("the block strengths are 0 in every layer of every LoRA, so nothing is merged")
    refuse_overflow(stacks, settings.scale, loras)
    results: dict[str, MergedLayer] = {}
    scratch = Scratch()
    for group in batches(stacks, settings, where):
        if progress is not None:
            progress(len(results), len(stacks), group[0].name)
        for layer in _merge_group(group, settings, where, dtype or torch.float32, scratch):
            results[layer.aligned.name] = layer
    results = {stack.name: results[stack.name] for stack in stacks}
    if progress is not None:
        progress(len(stacks), len(stacks), "")
    return Merged(
        results, loras, weights, text_weights, settings, where, dtype or torch.float32, combination_type,
        replaced, keep, strengths, scaled,
    )  # fmt: skip


def _merge_group(
    group: list[AlignedLayer],
    settings: Settings,
    device: torch.device | None,
    dtype: torch.dtype,
    scratch: Scratch,
) -> list[MergedLayer]:
    if settings.space == "factors":
        for stack in group:
            _check_factors(stack)
    if len(group) > 1:
        return merge_batch(group, settings, device, dtype)
    return [_merge_layer(group[0], settings, device, dtype, scratch)]


def _merge_layer(
    stack: AlignedLayer, settings: Settings, device: torch.device | None, dtype: torch.dtype, scratch: Scratch
) -> MergedLayer:
    if settings.space == "factors" and stack.parts[0].layout != "vector":
        ups, downs = merge_factors([stack], settings, device)
        # a rank is cut from what was computed, not from what its dtype keeps of it
        kept = dtype if settings.rank is None else torch.float32
        layer = MergedLayer(stack, settings).pinned(ups[0], downs[0], kept)
    else:
        thresholds = None if settings.method.linear else find_thresholds(stack, settings, device)
        layer = MergedLayer(stack, settings, thresholds)
    return layer if settings.rank is None else layer.truncated(settings.rank, device, dtype, scratch)


def _check_factors(stack: AlignedLayer) -> None:
    for part in stack.parts:
        if part.layout == "vector":
            continue  # it has one factor, itself
        if not isinstance(part, LowRank):
            raise IncompatibleLoraError(
                f"{stack.name} is a {type(part).__name__} adapter, which has no up and down factors; "
                "use space='delta'"
            )
    if len(set(stack.ranks)) > 1:
        raise IncompatibleLoraError(
            f"{stack.name}: the ranks differ ({', '.join(map(str, stack.ranks))}), and space='factors' needs "
            "equal ranks; use space='delta', which takes any"
        )


def _checked_weights(loras: list[Lora], weights: Sequence[float] | None) -> list[float]:
    if not loras:
        raise ParameterError("there is no LoRA to merge")
    if weights is None:
        return [1.0] * len(loras)
    if len(weights) != len(loras):
        raise ParameterError(f"{len(loras)} LoRAs need {len(loras)} weights, but {len(weights)} were given")
    for lora, weight in zip(loras, weights, strict=True):
        if not math.isfinite(weight):
            raise ParameterError(f"the weight of {lora.name} is {weight}; give a finite number")
    return [float(weight) for weight in weights]


def _checked_blocks(
    loras: list[Lora], blocks: Sequence[str | BlockStrengths | None] | None
) -> list[BlockStrengths | None]:
    if blocks is None:
        return [None] * len(loras)
    if isinstance(blocks, str) or len(blocks) != len(loras):
        given = "one text was" if isinstance(blocks, str) else f"{len(blocks)} were"
        raise ParameterError(f"{len(loras)} LoRAs need {len(loras)} entries of blocks, but {given} given")
    found = []
    for lora, each in zip(loras, blocks, strict=True):
        try:
            found.append(block_strengths(each))
        except ParameterError as error:
            raise ParameterError(f"{lora.name}: {error}") from error
    return found


def _settings(
    method: str, params: dict[str, Any], space: str, rank: int | None, scale: float, seed: int,
    svd_clamp: float | None = None,
) -> Settings:  # fmt: skip
    if space not in SPACES:
        raise ParameterError(f"unknown space {space!r}{did_you_mean(str(space), SPACES)}")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ParameterError(
            f"rank must be a whole number of 1 or more, or None for the exact result, not {rank!r}"
        )
    if not math.isfinite(scale):
        raise ParameterError(f"scale is {scale}; give a finite number")
    if svd_clamp is not None and not 0 <= svd_clamp <= 1:
        raise ParameterError(f"svd_clamp {svd_clamp} is outside [0, 1]")
    found = get_method(method)
    return Settings(found, found.resolve(params), space, rank, float(scale), int(seed), svd_clamp)


def _refuse_mixture(method: str | None, space: str, rank: int | None) -> None:
    if method is not None:
        raise ParameterError("give method (ours) or combination_type (PEFT's), not both")
    if space != "delta":
        raise ParameterError("combination_type already says the space; leave space out")
    if rank is not None:
        raise ParameterError("with combination_type, give the rank as svd_rank")


def _peft_settings(
    loras: list[Lora], name: str, svd_rank: int | None, svd_clamp: float | None, params: dict[str, Any],
    scale: float, seed: int,
) -> Settings:  # fmt: skip
    row = get_combination_type(name)
    for param in params:
        if param not in ("density", "majority_sign_method"):
            hint = did_you_mean(param, ("density", "majority_sign_method", "svd_rank", "svd_clamp"))
            raise ParameterError(f"combination_type has no parameter {param!r}{hint}")
    if len(loras) == 1:
        row = COMBINATION_TYPES["linear"]
    known = {p.name for p in get_method(row.method).params}
    used = {param: value for param, value in params.items() if param in known and value is not None}
    rank = (svd_rank or max(lora.rank for lora in loras)) if row.truncated else None
    return _settings(row.method, used, row.space, rank, scale, seed, svd_clamp if row.truncated else None)
