"""The merge itself, from what the user asks for to the result: ``merge`` checks, ``carry_out`` does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..blocks import BlockStrengths
from ..errors import ParameterError
from ..lora import Lora
from ..names.line_up import check_structure, name_alike
from ..progress import Progress
from .align import align
from .bind import bind, open_base_weights
from .cores import Moments
from .devices import usable_device
from .fused_weights import with_fused
from .ia3 import merge_ia3
from .layers import merge_layers
from .merged import Merged
from .overflow import refuse_overflow
from .pieces import cut_alike
from .request import Request, settle_rank
from .scratch import Scratch
from .whole_weights import agree_on_whole_weights
from .widened import widen_alike


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
    moments: Moments | None = None,
    reader: str = "peft",
    keep: str | None = None,
    apart: Sequence[bool] | None = None,
    combination_type: str | None = None,
    svd_rank: int | None = None,
    svd_clamp: float | None = None,
    **params: Any,
) -> Merged:
    """Merge LoRAs layer by layer.

    >>> import merge_ops
    >>> loras = [merge_ops.load("ink.safetensors"), merge_ops.load("mia.safetensors")]
    >>> merged = merge_ops.merge(loras, weights=[0.7, 0.3], method="ties", density=0.5)
    >>> list(merged.layers)
    ['unet.mid_block.attentions.0.proj_in', 'unet.mid_block.attentions.0.proj_out']

    Args:
        loras: what ``load`` returned. A layer that only some of them have is merged among those.
        weights: one multiplier per LoRA, 1.0 by default; negative ones are allowed.
        text_weights: the multipliers for the layers of text encoders; ``weights`` by default.
        blocks: one entry per LoRA: strengths by block and kind of layer that multiply its weight, such as
            ``"down:0.5 mid:1 attn:0.8"`` (see ``merge_ops.blocks``), or None. Where the product is 0, the
            LoRA is left out of the layer as if it did not have it: it has no vote there.
        method: a name in ``METHODS`` (``linear`` by default); its parameters are keywords (``density``, ...).
        space: ``delta`` merges the true weight changes; ``factors`` merges up and down separately, as PEFT
            and LoRAX do, which needs equal ranks and adds cross terms.
        rank: truncate every layer to this rank; None keeps the exact result.
        scale: multiplies the whole result.
        seed: of DARE's random masks; the same seed gives the same masks on every device.
        device: where to compute; None computes where the tensors are. The result is kept where they are.
        dtype: of the result; float32 by default. Computation is in float32.
        progress: called as ``progress(done, total, layer)``; an exception raised in it ends the merge.
        base: the base model, for adapters whose change depends on its weights (DoRA, GLoRA, OFT, BOFT,
            (IA)3): a safetensors file; a diffusers or transformers folder, from which only the weights
            needed are read; a model or pipeline; or a function from a layer's name to its weight. Without
            it, (IA)3 adapters can be merged by ``linear`` only, as the factors that they are.
        moments: for methods that need a recording of what the model does with each LoRA: per layer a tensor
            ``(n, R, R)``. A layer that is missing is merged as by ``linear``.
        reader: which program's arithmetic such adapters follow where programs differ: ``peft`` (also the
            trainers'), or ``comfyui``, which takes the norms of a DoRA from the weight without the LoRA.
        keep: name of the LoRA whose heads and other whole weights are kept where the LoRAs differ.
        apart: one entry per LoRA: True for one that is added after the merge of the others, without a vote
            and untrimmed. By default these are LoRAs for fewer steps (LCM, Lightning, Turbo, Hyper), told by
            name or metadata and by a spectrum that is nearly flat; in ``linear`` it makes no difference.
        combination_type: a name of PEFT's ``add_weighted_adapter`` instead of ``method``, with PEFT's
            keywords ``svd_rank``, ``svd_clamp``, ``density`` and ``majority_sign_method``. As in PEFT,
            keywords that a type does not use are ignored, and a single LoRA is merged as ``linear``.

    Raises:
        UnknownMethodError, ParameterError: for a request that cannot be met.
        IncompatibleLoraError: if two LoRAs disagree about the shape of a layer or about a whole weight, or
            if an adapter needs the base model and none is given.
        MergeError: if a layer would contain NaN or infinity.
    """
    loras = list(loras)
    request = Request.of(
        loras, weights, method, text_weights=text_weights, blocks=blocks, space=space, rank=rank, scale=scale,
        seed=seed, reader=reader, keep=keep, combination_type=combination_type, svd_rank=svd_rank,
        svd_clamp=svd_clamp, apart=apart, **params,
    )  # fmt: skip
    return carry_out(request, loras, base, moments=moments, device=device, dtype=dtype, progress=progress)


def carry_out(
    request: Request,
    loras: Sequence[Lora],
    base: Any = None,
    *,
    moments: Moments | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    sparing: bool = False,
) -> Merged:
    """Merge LoRAs as the request says, one step after the other; see ``merge`` for the other arguments.

    ``sparing`` is for a device that has run out of memory: the merge then works in small tiles.
    """
    _check_recorded(request, moments)
    base_weights = with_fused(open_base_weights(base))
    loras, ia3 = merge_ia3(list(loras), request) if base is None else (list(loras), {})
    loras = bind(loras, base_weights, request.reader)
    given, alike = loras, name_alike(loras)
    check_structure(alike, given)
    loras = cut_alike(alike, base_weights)
    loras = widen_alike(alike if loras is alike else name_alike(loras))
    whole_weights = agree_on_whole_weights(loras, request.keep, base_weights)
    request = settle_rank(request, loras)
    aligned = align(loras, request)
    refuse_overflow(aligned, request.settings.scale, loras)
    where, kept = usable_device(device), dtype or torch.float32
    layers = merge_layers(aligned, request.settings, where, kept, progress, Scratch(sparing), moments)
    return Merged(request, loras, layers, whole_weights, ia3, where, kept)


def _check_recorded(request: Request, moments: Moments | None) -> None:
    if request.settings.method.needs_recording and moments is None:
        raise ParameterError(
            f"{request.settings.method.name} needs a recording of what the model does with each LoRA; record "
            "one, or choose a method that works without"
        )
