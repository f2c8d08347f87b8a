"""Adding a merge to the weights of a model in place, and restoring them exactly."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn

from ..merging.merged import Merged
from ..merging.misfits import describe_misfits
from .check_fit import check_fit
from .parameters import has_bias, merged_weight, module_of, parameter

FindModule = Callable[[str], nn.Module | None]


class AppliedMerge:
    """A merge that has been added to a model's weights. Use it as a context manager, or call ``restore``.

    The original weights are kept in CPU memory and restored bit for bit. ``matched`` and ``unmatched`` name
    the layers of the merge that the model has and does not have; ``misfits`` those that are left out, with
    the reason, since the model's weight has another shape, which a Python warning says too.
    """

    def __init__(self, find: FindModule, merged: Merged, strength: float = 1.0) -> None:
        self._find = find
        self._originals: dict[str, Tensor] = {}
        self.matched: tuple[str, ...] = ()
        self.unmatched: tuple[str, ...] = ()
        self.misfits: dict[str, str] = {}
        self.replace(merged, strength)

    def replace(self, merged: Merged, strength: float = 1.0) -> None:
        """Take the current merge out and add another one, without reading any file again.

        Whole weights in the merge (heads, set weights) replace those of the model, whatever the strength.

        Raises:
            IncompatibleLoraError: if no layer fits, or most have a different shape; the weights then stay as
                they were before the call.
        """
        names = dict.fromkeys((*merged.whole_weights, *merged.layers, *merged.ia3))
        modules = {name: module for name in names if (module := self._module(name)) is not None}
        for name in [name for name in merged.ia3 if name.endswith(".bias")]:
            if name in modules and not has_bias(modules[name]):  # PEFT scales a bias only where there is one
                del names[name], modules[name]
        self.misfits = check_fit(merged, modules)
        if self.misfits:
            warnings.warn(describe_misfits(self.misfits), stacklevel=4)
            modules = {name: module for name, module in modules.items() if name not in self.misfits}
        self.restore()
        self.matched = tuple(name for name in (*merged.layers, *merged.ia3) if name in modules)
        self.unmatched = tuple(name for name in names if name not in modules)
        try:
            for name, module in modules.items():
                weight = parameter(module, name)
                self._put(name, weight, merged_weight(merged, name, module, weight, strength))
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Restore the original weights; calling it again does nothing."""
        with torch.no_grad():
            for name, original in reversed(self._originals.items()):
                module = self._module(name)
                if module is not None:
                    parameter(module, name).copy_(original)
        self._originals = {}

    def _module(self, name: str) -> nn.Module | None:
        return self._find(module_of(name))

    def _put(self, name: str, weight: Tensor, value: Tensor) -> None:
        with torch.no_grad():
            self._originals[name] = weight.to("cpu", copy=True)
            weight.copy_(value)

    def __enter__(self) -> AppliedMerge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
