"""The model that learning works with: one that can run with a merge added, and whose calls are recorded."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MergeError
from ..merging.merged import Merged
from .plain import Tree, plain

_ENTRIES = 16  # of each weight that the fingerprint is made from


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """Where a layer of a LoRA acts: a module, or some rows of its weight.

    ``rows`` are rows of the weight ``(out, in)``, in the order of the layer's own rows; None means all.
    """

    module: nn.Module
    rows: slice | Tensor | None = None


class Host(ABC):
    """A base model whose modules are recorded, measured and trained.

    ``modules`` are those whose calls count, by a name of your choice such as ``denoiser``; the first is the
    one that summaries are about. A layer belongs to the module that contains its site.
    """

    modules: Mapping[str, nn.Module]
    base: Any = None  # for LoRAs whose change depends on the base model; see ``merge``
    loss: str = "mse"  # or "kl", for modules that return logits

    @abstractmethod
    def site(self, layer: str) -> Site | None:
        """Return where a layer acts, or None if the model has no such layer."""

    @abstractmethod
    def applied(self, merged: Merged | None) -> AbstractContextManager[Any]:
        """Return a context in which the modules have the merge added; with None they are the base."""

    @abstractmethod
    def training(self) -> AbstractContextManager[Any]:
        """Return a context in which the modules are frozen and gradients can pass through them."""

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module with inputs that were recorded."""
        return self.modules[name](*args, **kwargs)

    def inputs(self, name: str, args: Tree, kwargs: Tree) -> tuple[Tree, Tree]:
        """Return what is kept of the inputs of a call: plain data, all that a replay needs."""
        return plain(args), plain(kwargs)

    def output(self, name: str, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return the tensor ``(batch, ...)`` that counts of what a call returned."""
        return first_tensor(output)

    def device(self, name: str) -> torch.device:
        """Return the device that a module computes on."""
        first = next(self.modules[name].parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def fingerprint(self) -> str:
        """Return a SHA-256 of the base: names, shapes and a sample of the entries of all weights."""
        digest = hashlib.sha256()
        with torch.no_grad():
            for name, module in self.modules.items():
                for path, weight in sorted(module.named_parameters()):
                    digest.update(f"{name}.{path} {tuple(weight.shape)}".encode())
                    flat = weight.detach().reshape(-1)
                    some = flat[:: max(1, flat.numel() // _ENTRIES)][:_ENTRIES]
                    digest.update(some.to("cpu", torch.float32).numpy().tobytes())
        return digest.hexdigest()

    def module_of(self, layer: str) -> str | None:
        """Return the name of the module that a layer acts in, or None if it acts in none of them."""
        site = self.site(layer)
        if site is None:
            return None
        for name, module in self.modules.items():
            if any(part is site.module for part in module.modules()):
                return name
        return None


def first_tensor(output: Any) -> Tensor:
    """Return the tensor of a model's output: itself, the first of a tuple, or the first field.

    Raises:
        MergeError: if there is none.
    """
    if isinstance(output, Tensor):
        return output
    values: Any = output.values() if isinstance(output, Mapping) else output
    if isinstance(values, tuple | list) or isinstance(output, Mapping):
        for value in values:
            if isinstance(value, Tensor):
                return value
    raise MergeError(f"a recorded module returned a {type(output).__name__}, in which there is no tensor")
