"""Looking up the modules of a transformers model by the layer names of an adapter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..errors import IncompatibleLoraError
from ..names.language import split_wrappers
from ..names.prefixes import strip_wrappers
from .parameters import module_of


class Modules:
    """The modules of a transformers model, by layer name.

    A layer name may include or omit the prefix of the base model (``model.``, ``transformer.``, ``bert.``),
    and may be the one that another version of transformers has.
    A ``PeftModel`` is unwrapped first.
    """

    def __init__(self, model: nn.Module) -> None:
        unwrap: Any = getattr(model, "get_base_model", None)
        inner: nn.Module = model if unwrap is None else unwrap()
        self._prefix = f"{getattr(inner, 'base_model_prefix', '')}."
        # under torch.compile, the innermost module of a name is the one that has the weight
        self.by_path = {strip_wrappers(path): module for path, module in inner.named_modules()}
        self._by_part = _index(self.by_path)

    def path(self, layer: str) -> str | None:
        """Return the path of a layer's module, bias or expert, or None if the model has no such module."""
        module = module_of(layer)
        spellings = (module, self._prefix + module, module.removeprefix(self._prefix))
        path = next((name for name in spellings if name in self.by_path), None)
        if path is None and (parts := split_wrappers(module)) is not None:
            path = self._by_part.get((parts[0], parts[2]))
        return None if path is None else path + layer[len(module) :]

    def find(self, layer: str) -> nn.Module | None:
        """Return the module of a layer, or None if the model has no such module."""
        path = self.path(layer)
        return None if path is None else self.module(path)

    def module(self, path: str) -> nn.Module:
        """Return the module at a path that ``path`` returned."""
        module: nn.Module = self.by_path[module_of(path)]
        return module

    def paths(self, layers: Iterable[str]) -> dict[str, str]:
        """Map each layer to its path; every layer must have a module of its own.

        Raises:
            IncompatibleLoraError: if a layer has no module, or if two layers share one.
        """
        paths: dict[str, str] = {}
        taken: dict[str, str] = {}
        for layer in layers:
            path = self.path(layer)
            if path is None:
                raise IncompatibleLoraError(
                    f"the model has no module for the layer {layer}; the LoRA is for another base model"
                )
            if path in taken:
                raise IncompatibleLoraError(f"{taken[path]} and {layer} are the same module of the model")
            taken[path] = layer
            paths[layer] = path
        return paths


def _index(paths: Iterable[str]) -> dict[tuple[str, str], str]:
    """The paths by what all versions of transformers call a module, where this is one module's name only."""
    index: dict[tuple[str, str], str] = {}
    shared = set[tuple[str, str]]()
    for path in paths:
        if (parts := split_wrappers(path)) is not None:
            key = parts[0], parts[2]
            if index.setdefault(key, path) != path:
                shared.add(key)
    return {key: path for key, path in index.items() if key not in shared}
