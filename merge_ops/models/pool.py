"""One text model and many adapters: each request merges some of them."""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..errors import ParameterError, did_you_mean
from ..formats import load
from ..lora import Lora
from ..merging.bind import bind
from ..merging.merge import merge
from ..merging.misfits import leave_out
from ..recipes import Recipe, Source
from ..recipes.checked import plain_name
from .check_fit import check_fit
from .swap import SwappedWeights, WeightSwap
from .turns import Turns

_CACHE_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, eq=False)
class _Adapter:
    """A registered LoRA whose layers are named by module paths; each registration has its own number."""

    lora: Lora
    number: int


_Key = tuple[str, tuple[int, ...]]  # the recipe, and the numbers of its adapters, in order


class AdapterPool:
    """Adapters of one model in CPU memory, merged and applied request by request.

    ``with pool.merged(request):`` gives the model the weights of that merge. At the end of the block, also
    after an exception, it puts the original parameters back: the same objects, bit for bit. A request is a
    ``Recipe``, its dictionary or JSON, or LoRAX's ``merged_adapters``; its sources are names of adapters in
    the pool. Merged weights are cached, the most recently used first, up to ``cache_bytes``; those in use
    come on top. They are as large as the weights that they replace, and on the same device.

    The pool is thread-safe: blocks with different merges run one after another in order of arrival, and
    blocks with the same merge may run together. Code that uses the model outside of any block sees the
    weights of whichever block is open. A block must be left by the thread that entered it, and blocks must
    not be nested. Weights inside a block are for inference; training or moving the model between blocks is
    detected.

    Args:
        model: a transformers model, or a ``PeftModel`` around one; the weights that adapters change must be
            loaded and not quantised.
        cache_bytes: the most memory that cached merges may take; 0 disables the cache.

    Raises:
        ParameterError: if ``cache_bytes`` is negative.
    """

    def __init__(self, model: nn.Module, cache_bytes: int = _CACHE_BYTES) -> None:
        if cache_bytes < 0:
            raise ParameterError(f"cache_bytes must be 0 or more, not {cache_bytes}")
        self.cache_bytes = cache_bytes
        self._swap = WeightSwap(model)
        self._turns = Turns()
        self._lock = threading.Lock()  # guards the adapters and the cache
        self._merging = threading.Lock()  # one merge at a time; the model may generate meanwhile
        self._adapters: dict[str, _Adapter] = {}
        self._cache: OrderedDict[_Key, tuple[SwappedWeights, int]] = OrderedDict()
        self._numbers = itertools.count()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the adapters, in the order in which they were added."""
        return tuple(self._adapters)

    @property
    def cached_bytes(self) -> int:
        """The memory that cached merges take, in bytes."""
        with self._lock:
            return sum(size for _, size in self._cache.values())

    @property
    def cached_merges(self) -> int:
        """The number of cached merges."""
        return len(self._cache)

    def add(self, name: str, path: str | os.PathLike[str]) -> Lora:
        """Read an adapter, check that it fits the model, and register it; requests may run in the meantime.

        Args:
            name: the name that requests use: a plain name, optionally with folders (``org/adapter``).
            path: a ``.safetensors`` file or a PEFT folder.

        Returns:
            The LoRA; its ``unmerged`` and ``warnings`` list what its file holds but the merge does not use.

        Raises:
            ParameterError: if the name is taken or is not plain.
            LoraFormatError: if the file cannot be read.
            IncompatibleLoraError: naming a layer that the model lacks, or if most have another shape; a few
                such layers are left out, and named in ``unmerged`` and ``warnings``.
        """
        plain_name(name, "the name of an adapter")
        self._refuse_taken(name)
        (read,) = bind([load(path)], self._swap.original, "peft")
        names = dict.fromkeys((*read.layers, *read.whole_weights))
        paths = self._swap.modules.paths(names)
        layers = {paths[layer]: part for layer, part in read.layers.items()}
        whole_weights = {paths[layer]: weight for layer, weight in read.whole_weights.items()}
        lora = replace(
            read, name=name, layers=layers, whole_weights=whole_weights, origin=read.origin or read
        )
        self._swap.check(paths.values())
        lora = leave_out(
            lora, check_fit(merge([lora]), {path: self._swap.modules.module(path) for path in paths.values()})
        )
        with self._lock:
            self._refuse_taken(name)
            self._adapters[name] = _Adapter(lora, next(self._numbers))
        return lora

    def remove(self, name: str) -> None:
        """Remove an adapter and its cached merges; a request that is using it can finish.

        Raises:
            ParameterError: if no adapter has that name.
        """
        with self._lock:
            gone = self._named(name)
            del self._adapters[name]
            for key in [key for key in self._cache if gone.number in key[1]]:
                del self._cache[key]

    @contextmanager
    def merged(self, request: Recipe | dict[str, Any] | str) -> Iterator[Recipe]:
        """Apply a merge for the length of a ``with`` block, and yield the request as a recipe.

        The merge is first looked up or computed, while other blocks may be using the model; then the block
        waits for its turn. ``recipe.warnings`` says how the merge differs from what another program would
        compute for the request.

        Raises:
            ParameterError, UnknownMethodError: for an invalid request, or an adapter that is not in the pool.
            IncompatibleLoraError: if the adapters cannot be merged that way, such as different ranks in
                factor space.
            MergeError: if this thread is already inside a block.
        """
        recipe = request if isinstance(request, Recipe) else Recipe.parse(request)
        with self._lock:
            adapters = [self._adapter(source) for source in recipe.sources]
        key = (replace(recipe, version="", warnings=()).to_json(), tuple(a.number for a in adapters))
        swapped = self._swapped(key, recipe, adapters)
        with self._turns.turn(key, lambda: self._swap.put_in(swapped), self._swap.put_back):
            yield recipe

    def _swapped(self, key: _Key, recipe: Recipe, adapters: list[_Adapter]) -> SwappedWeights:
        """Return the weights of a merge, from the cache or computed now."""
        cached = self._cached(key)
        if cached is not None:
            return cached
        with self._merging:
            cached = self._cached(key)  # another thread may have computed it in the meantime
            if cached is not None:
                return cached
            loras = [adapter.lora for adapter in adapters]
            size = self._swap.size({path for lora in loras for path in (*lora.layers, *lora.whole_weights)})
            self._make_room(size)
            swapped = self._swap.compute(recipe.run(loras))
            with self._lock:
                known = {a.number for a in self._adapters.values()}
                if size <= self.cache_bytes and known.issuperset(key[1]):
                    self._cache[key] = swapped, size
            return swapped

    def _cached(self, key: _Key) -> SwappedWeights | None:
        with self._lock:
            if key not in self._cache:
                return None
            if not self._swap.is_current(self._cache[key][0]):
                del self._cache[key]
                return None
            self._cache.move_to_end(key)
            return self._cache[key][0]

    def _make_room(self, size: int) -> None:
        """Drop the least recently used merges before the new one takes memory."""
        with self._lock:
            taken = sum(size for _, size in self._cache.values())
            while self._cache and taken + size > self.cache_bytes >= size:
                taken -= self._cache.popitem(last=False)[1][1]

    def _adapter(self, source: Source) -> _Adapter:
        """Return the adapter with the SHA-256 of the source, or with its name if it has no SHA-256."""
        if source.sha256 is None:
            return self._named(source.name)
        adapter = next((a for a in self._adapters.values() if a.lora.sha256 == source.sha256), None)
        if adapter is None:
            raise ParameterError(
                f"no adapter in the pool has the SHA-256 {source.sha256[:12]}... that the recipe gives for "
                f"{source.name!r}; add that file, or leave the SHA-256 out"
            )
        return adapter

    def _named(self, name: str) -> _Adapter:
        if name not in self._adapters:
            raise ParameterError(
                f"no adapter in the pool is named {name!r}{did_you_mean(name, self._adapters)}"
            )
        return self._adapters[name]

    def _refuse_taken(self, name: str) -> None:
        if name in self._adapters:
            raise ParameterError(f"an adapter named {name!r} already exists; remove it first")
