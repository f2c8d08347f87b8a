"""Adding a merge to a text model of transformers, for one block of code or for one request after another.

    with patched(model, merged):
        model.generate(**inputs)

    pool = AdapterPool(model)
    pool.add("sql", "adapters/sql")
    with pool.merged({"ids": ["sql"], "weights": [1.0]}):
        model.generate(**inputs)

The weights are exchanged as objects and never written to: a weight that two modules share, as an embedding
and its output head may, changes only in the module that the adapter names.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..merging.merged import Merged
from .exchange import Modules, as_parameter
from .parameters import EXPERT, attribute_of, owner_of
from .pool import AdapterPool
from .weights import Patch

__all__ = ["AdapterPool", "patched"]


def patched(model: nn.Module, merged: Merged, strength: float = 1.0) -> Patch:
    """Put ``weight + strength * merged`` into ``model`` in place of its weights.

    Args:
        model: a model of transformers, or a ``PeftModel`` around one; what PEFT has active stays active.
        merged: what ``merge_ops.merge`` returned.
        strength: multiplies the merge.

    Returns:
        A ``Patch``: a context manager that puts the original weights back at its end; ``replace`` switches
        to another merge, ``restore`` takes it out.

    Raises:
        IncompatibleLoraError: if the model has no module for a layer, or shapes disagree.
    """
    return _Exchanged(Modules(model), merged, strength)


class _Exchanged(Patch):
    """A patch that gives modules new parameters, which leaves those that share the old ones alone."""

    def __init__(self, modules: Modules, merged: Merged, strength: float) -> None:
        self._modules = modules
        super().__init__(modules.find, merged, strength)

    def replace(self, merged: Merged, strength: float = 1.0) -> None:
        self._modules.paths(dict.fromkeys((*merged.whole_weights, *merged.layers)))
        super().replace(merged, strength)

    def restore(self) -> None:
        written = {name: weight for name, weight in self._originals.items() if EXPERT.fullmatch(name)}
        for name, original in self._originals.items():
            if name not in written:
                self._set(name, original)
        self._originals = written
        super().restore()

    def _put(self, name: str, weight: Tensor, value: Tensor) -> None:
        if EXPERT.fullmatch(name):  # one matrix of a larger parameter is written to
            super()._put(name, weight, value)
            return
        self._originals[name] = weight
        self._set(name, as_parameter(value, weight))

    def _set(self, name: str, weight: Tensor) -> None:
        module = self._module(name)
        assert module is not None  # it was found when the patch was made
        setattr(owner_of(module), attribute_of(name), weight)
