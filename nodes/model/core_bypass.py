"""What ComfyUI does not promise to keep of its bypass mode, in which layers add a LoRA to their outputs.

As in ``core.py``, each thing has one function here, and a check in ``tests/nodes/checks_core_bypass.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy.patcher_extension import PatcherInjection
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .core import patcher_of

_KEY = "bypass_lora"  # of ComfyUI's own bypass loaders
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def add_bypass(part: Any, adapters: Mapping[str, Any], strength: float) -> None:
    """Let layers of a (cloned) MODEL or CLIP add adapters to their outputs, by the keys of their weights.

    What is bypassed on it already stays, inside of this: each hook wraps the forward pass that it finds, so
    that they must come off in the reverse order.
    """
    from comfy.weight_adapter.bypass import BypassInjectionManager  # newer than the rest that is imported

    patcher = patcher_of(part)
    manager = BypassInjectionManager()
    for key, adapter in adapters.items():
        manager.add_adapter(key, adapter, strength)
    steps = [*(patcher.get_injections(_KEY) or []), *manager.create_injections(patcher.model)]

    def inject(model: Any) -> None:
        for step in steps:
            step.inject(model)

    def eject(model: Any) -> None:
        for step in reversed(steps):
            step.eject(model)

    patcher.set_injections(_KEY, [PatcherInjection(inject, eject)])


def has_bypass(part: Any) -> bool:
    """Return whether layers of a MODEL or CLIP add LoRAs to their outputs."""
    return _KEY in getattr(patcher_of(part), "injections", {})


def module_of(part: Any, key: str) -> nn.Module:
    """Return the module that has the weight of a key."""
    module: nn.Module = patcher_of(part).model.get_submodule(key.rpartition(".")[0])
    return module


def takes_bypass(module: nn.Module | None) -> bool:
    """Return whether an adapter that is added to the output is the same as one that changes the weight.

    True for linear layers and plain convolutions that compute by their forward pass.
    """
    if isinstance(module, _CONVS):
        return module.groups == 1 and module.padding_mode == "zeros"
    if isinstance(
        module, nn.Linear
    ):  # of these, torch's attention reads the weight without calling the layer
        return not isinstance(module, NonDynamicallyQuantizableLinear)
    return "linear" in type(module).__name__.lower()  # those of packs, and quantised ones


def count_rows(module: nn.Module | None) -> int | None:
    """Return the size of a layer's output, which a packed weight does not tell; None if unknown."""
    sizes = (getattr(module, name, None) for name in ("out_features", "out_channels"))
    return next((size for size in sizes if isinstance(size, int)), None)


def apply_delta(adapter: Any, x: Tensor, delta: Tensor) -> Tensor:
    """Return what a change of the weight, as a matrix, adds to the output of the layer of an adapter."""
    if not adapter.is_conv:
        return functional.linear(x, delta)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[adapter.conv_dim - 1]
    return convolve(x, delta.view(len(delta), -1, *adapter.kernel_size), **adapter.kw_dict)
