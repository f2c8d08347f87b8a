"""Writing (IA)3 adapters as PEFT folders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..adapters import Ia3
from ..errors import MergeError
from ..steady import total

_PREFIX = "base_model.model."


def ia3_tensors(ia3: dict[str, Ia3], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors to write. PEFT itself applies the factors of a module's outputs to its bias."""
    tensors = {}
    for name, adapter in ia3.items():
        if not name.endswith(".bias"):
            shape = adapter.stored or ((1, -1) if adapter.by_input else (-1, 1))
            factors = (adapter.added.to(torch.float64) + 1).to(dtype).reshape(shape)
            tensors[f"{_stem(name, adapter)}.ia3_l"] = factors.cpu().contiguous()
    return tensors


def ia3_errors(ia3: dict[str, Ia3], tensors: dict[str, Tensor]) -> Iterator[tuple[str, float, float]]:
    """Yield each layer's name, and the squared error and squared norm of what its factors add to 1."""
    for name, adapter in ia3.items():
        stored = tensors.get(f"{_stem(name, adapter)}.ia3_l")
        if stored is not None and not name.endswith(".bias"):
            exact = adapter.added.to("cpu", torch.float64)
            rounded = stored.flatten().to(torch.float64) - 1
            yield name, total((rounded - exact).square()), total(exact.square())


def ia3_config(ia3: dict[str, Ia3]) -> dict[str, Any]:
    """Return the part of ``adapter_config.json`` that is specific to (IA)3."""
    modules = {
        _stem(name, adapter).removeprefix(_PREFIX): adapter
        for name, adapter in ia3.items()
        if not name.endswith(".bias")
    }
    return {
        "peft_type": "IA3",
        "target_modules": sorted(modules),
        "feedforward_modules": sorted(path for path, adapter in modules.items() if adapter.by_input),
        "fan_in_fan_out": any(adapter.layout == "fan_in_fan_out" for adapter in modules.values()),
        "init_ia3_weights": True,
        "inference_mode": True,
    }


def check_alone(ia3: dict[str, Ia3], others: int, form: str) -> None:
    """Refuse a format, or other layers, that cannot be combined with (IA)3 in one file.

    Raises:
        MergeError: saying what to do instead.
    """
    if ia3 and form != "peft":
        raise MergeError(
            f"a merge of (IA)3 adapters is written as a PEFT folder, not as {form}; use format='peft'"
        )
    if ia3 and others:
        raise MergeError(
            f"the merge holds {len(ia3)} scaled layers of (IA)3 and {others} others, which one PEFT "
            "folder cannot hold; give the base model as base= to the merge"
        )


def _stem(name: str, adapter: Ia3) -> str:
    return adapter.key if adapter.key.startswith(_PREFIX) else _PREFIX + name
