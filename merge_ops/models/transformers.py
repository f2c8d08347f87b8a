"""Adding a merge to a transformers text model, for one block of code or request by request.

    with patched(model, merged):
        model.generate(**inputs)

    pool = AdapterPool(model)
    pool.add("sql", "adapters/sql")
    with pool.merged({"ids": ["sql"], "weights": [1.0]}):
        model.generate(**inputs)

The weights are swapped as objects and never written to. So a weight that two modules share, such as a tied
embedding and output head, changes only in the module that the adapter names.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..merging.merged import Merged
from .applied import AppliedMerge
from .modules import Modules
from .parameters import EXPERT, attribute_of, owner_of
from .pool import AdapterPool
from .swap import as_parameter

__all__ = ["AdapterPool", "patched"]


def patched(model: nn.Module, merged: Merged, strength: float = 1.0) -> AppliedMerge:
    """Replace each adapted weight of ``model`` with ``weight + strength * merged``.

    Args:
        model: a transformers model, or a ``PeftModel`` around one; adapters active in PEFT stay active.
        merged: what ``merge_ops.merge`` returned.
        strength: multiplies the merge.

    Returns:
        An ``AppliedMerge``: a context manager that puts the original weights back on exit. Its ``replace``
        switches to another merge, and ``restore`` takes the merge out.

    Raises:
        IncompatibleLoraError: if the model has no module for a layer, or if shapes differ.
    """
    return _SwappedMerge(Modules(model), merged, strength)


class _SwappedMerge(AppliedMerge):
    """An applied merge that gives modules new parameters, so modules that share the old ones keep them."""

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
        if EXPERT.fullmatch(name):  # one matrix of a larger parameter: written in place
            super()._put(name, weight, value)
            return
        self._originals[name] = weight
        self._set(name, as_parameter(value, weight))

    def _set(self, name: str, weight: Tensor) -> None:
        module = self._module(name)
        assert module is not None  # it was found when the merge was applied
        setattr(owner_of(module), attribute_of(name), weight)
