"""Weights that a model keeps packed or quantised: their true shapes, and those that no patch can change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ....merge_ops.errors import IncompatibleLoraError
from ....merge_ops.lora import Layer, Lora
from ..bypass_limits import why_not_bypassed
from ..core import StoredWeight, hand_to_patch, is_patched_by_pack, quantised_as
from ..target import Target

_SHOWN = 3  # layers that a message lists
_WAY_OUT = ", or set patching to bypass in Load & Merge LoRAs or Apply Merged LoRA"
# what tensors of foreign kinds raise at an operation that they do not have
_REFUSALS = (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError)


def read_true_shape(key: str, stored: StoredWeight) -> tuple[int, ...]:
    """Return the shape of a weight when it is unpacked: as it states itself, or else as its module does."""
    weight: Any = stored.weight
    # GGUF tensors state their own shape, and those of bitsandbytes that of what was quantised
    stated = getattr(weight, "tensor_shape", None) or getattr(
        getattr(weight, "quant_state", None), "shape", None
    )
    if stated is not None:
        return tuple(stated)
    declared = _declared_shape(stored.module) if key.endswith(".weight") else ()
    # a weight of more entries than declared was widened on purpose, for the extra channels of a control model
    return declared if math.prod(declared) > weight.numel() else tuple(weight.shape)


def refuse_packed(
    loras: Sequence[Lora],
    places: Sequence[Mapping[str, list[Target]]],
    stored: Mapping[str, StoredWeight],
    model: Any | None,
    clip: Any | None,
    bypass: bool = False,
) -> None:
    """Refuse LoRAs whose weights ComfyUI would hand to a patch as they are packed, or as whole numbers.

    ``places`` has the targets of each LoRA by layer name, several for the parts of a fused weight. With
    ``bypass``, only what bypass cannot hold needs to be patched.

    Raises:
        IncompatibleLoraError: with the layers, before anything is computed.
    """
    by_pack = {
        is_denoiser: part is not None and is_patched_by_pack(part)
        for is_denoiser, part in ((True, model), (False, clip))
    }
    tried: dict[tuple[Any, ...], bool] = {}
    for lora, targets in zip(loras, places, strict=True):
        ours: dict[str, bool] = {}  # the key of a weight, and whether bypass can hold all that is added to it
        for name, parts in targets.items():
            for target in parts:
                if not by_pack[target.is_denoiser]:
                    takes = _takes_bypass(lora.layers.get(name), target, stored)
                    ours[target.key] = takes and ours.get(target.key, True)
        if bypass:
            ours = {key: takes for key, takes in ours.items() if not takes}
        packed = {}  # those with few entries first: one of each kind is tried, which unpacks it
        for key in sorted(ours, key=lambda key: (stored[key].weight.numel(), key)):
            if not _arrives(key, stored[key], tried):
                packed[key.removesuffix(".weight")] = stored[key].weight
        if packed:
            way_out = all(ours[key] for key in ours if key.removesuffix(".weight") in packed)
            raise IncompatibleLoraError(_explain(lora.name, packed, way_out))


def is_readable(weight: Tensor, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is numbers of a shape, and neither packed nor quantised."""
    is_plain = type(weight) in (Tensor, nn.Parameter) and weight.dtype.is_floating_point
    return is_plain and weight.numel() == math.prod(shape)


def _arrives(key: str, stored: StoredWeight, tried: dict[tuple[Any, ...], bool]) -> bool:
    """Whether ComfyUI hands the numbers of a weight to a patch; one weight of each kind is tried."""
    weight, shape = stored.weight, read_true_shape(key, stored)
    if is_readable(weight, shape):
        return True
    is_whole = weight.numel() == math.prod(shape)
    form = type(weight), weight.dtype, quantised_as(weight), is_whole
    kind = type(stored.module), stored.convert is None, form
    if kind not in tried:
        try:
            # whole numbers mean nothing without their scales, which only a module's own conversion knows
            has_meaning = weight.dtype.is_floating_point or stored.convert is not None
            tried[kind] = has_meaning and is_readable(hand_to_patch(stored), shape)
        except _REFUSALS:
            tried[kind] = False
    return tried[kind]


def _takes_bypass(layer: Layer | None, target: Target, stored: Mapping[str, StoredWeight]) -> bool:
    one = stored[target.key]
    if layer is None or why_not_bypassed(layer, target, one.module):
        return False
    return target.part is not None or layer.fits(read_true_shape(target.key, one))


def _declared_shape(module: Any) -> tuple[int, ...]:
    """The shape of a module's weight by its own account; ``()`` if it gives none."""
    for names in (("out_features", "in_features"), ("num_embeddings", "embedding_dim")):
        sizes = [size for name in names if isinstance(size := getattr(module, name, None), int)]
        if len(sizes) == len(names):
            return tuple(sizes)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return module.out_channels, module.in_channels // module.groups, *module.kernel_size
    return ()


def _explain(lora: str, packed: dict[str, Tensor], way_out: bool) -> str:
    kinds = sorted({f"{type(weight).__name__} of {_dtype(weight)}" for weight in packed.values()})
    names = sorted(packed)
    listed = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return (
        f"{lora} cannot be added to {len(packed)} weights that this model keeps packed ({', '.join(kinds)}), "
        f"since ComfyUI does not unpack them for a LoRA: {listed}. Load the model in another format, such as "
        "fp16, fp8 or GGUF with its own loader" + (_WAY_OUT if way_out else "")
    )


def _dtype(weight: Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")


def refuse_other_size(key: str, weight: Tensor, count: int) -> None:
    """Refuse a weight that arrives at a patch with another number of entries than the change has.

    The last line of defence, for models that another pack patches in its own way: ComfyUI's own adapter would
    log it and leave the weight as it is.

    Raises:
        IncompatibleLoraError: if so.
    """
    if weight.numel() != count or not weight.dtype.is_floating_point:
        why = (
            "another LoRA has widened it; merge the two in one node"
            if weight.numel() > count
            else "it is packed, and what loaded the model does not unpack it for a LoRA; load the model in "
            "another format, such as fp16 or fp8"
        )
        raise IncompatibleLoraError(
            f"{key} came to its LoRA as {weight.numel()} numbers of {_dtype(weight)}, and the change has "
            f"{count}: {why}"
        )
