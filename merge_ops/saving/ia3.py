"""(IA)3 adapters as PEFT folders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..adapters import Ia3
from ..errors import MergeError

_PREFIX = "base_model.model."


def ia3_tensors(scaled: dict[str, Ia3], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors to write. PEFT applies the factors of a module's outputs to its bias by itself."""
    tensors = {}
    for name, adapter in scaled.items():
        if not name.endswith(".bias"):
            shape = adapter.stored or ((1, -1) if adapter.by_input else (-1, 1))
            factors = (adapter.added.to(torch.float64) + 1).to(dtype).reshape(shape)
            tensors[f"{_stem(name, adapter)}.ia3_l"] = factors.cpu().contiguous()
    return tensors


def ia3_errors(scaled: dict[str, Ia3], tensors: dict[str, Tensor]) -> Iterator[tuple[str, float, float]]:
    """Of each layer its name, and the squared error and norm of what its factors add to 1."""
    for name, adapter in scaled.items():
        found = tensors.get(f"{_stem(name, adapter)}.ia3_l")
        if found is not None and not name.endswith(".bias"):
            exact = adapter.added.to("cpu", torch.float64)
            rounded = found.flatten().to(torch.float64) - 1
            yield name, float((rounded - exact).square().sum()), float(exact.square().sum())


def ia3_config(scaled: dict[str, Ia3]) -> dict[str, Any]:
    """What is special to (IA)3 in ``adapter_config.json``."""
    modules = {
        _stem(name, adapter).removeprefix(_PREFIX): adapter
        for name, adapter in scaled.items()
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


def check_alone(scaled: dict[str, Ia3], others: int, form: str) -> None:
    """Refuse what no file can hold beside (IA)3."""
    if scaled and form != "peft":
        raise MergeError(
            f"a merge of (IA)3 adapters is written as a PEFT folder, not as {form}; use format='peft'"
        )
    if scaled and others:
        raise MergeError(
            f"the merge holds {len(scaled)} scaled layers of (IA)3 and {others} others, which one PEFT "
            "folder cannot hold; give the base model as base= to the merge"
        )


def _stem(name: str, adapter: Ia3) -> str:
    return adapter.key if adapter.key.startswith(_PREFIX) else _PREFIX + name
