"""One text model, many adapters, and a merge of some of them for each request."""

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
from ..recipes import Recipe, Source
from ..recipes.checked import plain_name
from .exchange import Exchange, Patched
from .fits import check_fits
from .turns import Turns

_CACHE_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, eq=False)
class _Adapter:
    """A registered LoRA, its layers called by module paths; ``number`` differs for each registration."""

    lora: Lora
    number: int


_Key = tuple[str, tuple[int, ...]]  # the recipe, and the numbers of its adapters in order


class AdapterPool:
    """Adapters of one model in CPU memory, merged and applied request by request.

    ``with pool.merged(request):`` gives the model the weights of that merge and takes them out again, also
    after an exception, by putting the original parameters back: bit for bit, the same objects. A request
    is a ``Recipe``, its dictionary or JSON, or LoRAX's ``merged_adapters``; its sources are adapters of
    the pool by name. Merged weights are kept, the most recently used first, up to ``cache_bytes``; those in
    use come on top. They are as large as the weights they replace and lie where these are.

    Safe from several threads: blocks with different merges run one after the other in the order they came,
    blocks with the same merge may run together. What uses the model outside of any block sees the weights
    of whichever block is open. A block must be left by the thread that entered it, and must not be nested.
    Weights within a block are for inference; training or moving the model between blocks is noticed.

    Args:
        model: a model of transformers, or a ``PeftModel`` around one; its weights must be loaded and not
            quantised where adapters are added.
        cache_bytes: the most that cached merges may take; 0 keeps none.

    Raises:
        ParameterError: if ``cache_bytes`` is negative.
    """

    def __init__(self, model: nn.Module, cache_bytes: int = _CACHE_BYTES) -> None:
        if cache_bytes < 0:
            raise ParameterError(f"cache_bytes must be 0 or more, not {cache_bytes}")
        self.cache_bytes = cache_bytes
        self._exchange = Exchange(model)
        self._turns = Turns()
        self._lock = threading.Lock()  # of the adapters and the cache
        self._merging = threading.Lock()  # one merge at a time; the model may generate meanwhile
        self._adapters: dict[str, _Adapter] = {}
        self._cache: OrderedDict[_Key, tuple[Patched, int]] = OrderedDict()
        self._numbers = itertools.count()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, in the order they were added."""
        return tuple(self._adapters)

    @property
    def cached_bytes(self) -> int:
        """What the cached merges take."""
        with self._lock:
            return sum(size for _, size in self._cache.values())

    @property
    def cached_merges(self) -> int:
        """How many merges are cached."""
        return len(self._cache)

    def add(self, name: str, path: str | os.PathLike[str]) -> Lora:
        """Read an adapter, check that it fits the model, and register it; requests may run meanwhile.

        Args:
            name: what requests call it: a plain name, folders are allowed (``org/adapter``).
            path: a ``.safetensors`` file or a PEFT folder.

        Returns:
            The LoRA; ``unmerged`` and ``warnings`` say what of its file takes no part.

        Raises:
            ParameterError: if the name is taken or is not plain.
            LoraFormatError: if the file cannot be read.
            IncompatibleLoraError: naming a layer that the model does not have, or that has another shape.
        """
        plain_name(name, "the name of an adapter")
        self._refuse_taken(name)
        (read,) = bind([load(path)], self._exchange.weight, "peft")
        names = dict.fromkeys((*read.layers, *read.whole_weights))
        paths = self._exchange.modules.paths(names)
        layers = {paths[layer]: part for layer, part in read.layers.items()}
        replaced = {paths[layer]: weight for layer, weight in read.whole_weights.items()}
        lora = replace(read, name=name, layers=layers, whole_weights=replaced, origin=read.origin or read)
        self._exchange.check(paths.values())
        check_fits(merge([lora]), {path: self._exchange.modules.module(path) for path in paths.values()})
        with self._lock:
            self._refuse_taken(name)
            self._adapters[name] = _Adapter(lora, next(self._numbers))
        return lora

    def remove(self, name: str) -> None:
        """Forget an adapter and the cached merges of it; a request that has it in use finishes with it.

        Raises:
            ParameterError: if no adapter is called that.
        """
        with self._lock:
            gone = self._named(name)
            del self._adapters[name]
            for key in [key for key in self._cache if gone.number in key[1]]:
                del self._cache[key]

    @contextmanager
    def merged(self, request: Recipe | dict[str, Any] | str) -> Iterator[Recipe]:
        """Apply a merge for the length of a ``with`` block; gives the request as a recipe.

        The merge is looked up or made first, while others may still be using the model; then the block
        waits for its turn. ``recipe.warnings`` says in what the merge differs from what another program
        makes of the request.

        Raises:
            ParameterError, UnknownMethodError: for a wrong request, or an adapter that is not in the pool.
            IncompatibleLoraError: if the adapters cannot be merged that way, as different ranks in factor
                space.
            MergeError: if this thread is within a block already.
        """
        recipe = request if isinstance(request, Recipe) else Recipe.parse(request)
        with self._lock:
            adapters = [self._of(source) for source in recipe.sources]
        key = (replace(recipe, version="", warnings=()).to_json(), tuple(a.number for a in adapters))
        patched = self._patched(key, recipe, adapters)
        with self._turns.turn(key, lambda: self._exchange.put_in(patched), self._exchange.put_back):
            yield recipe

    def _patched(self, key: _Key, recipe: Recipe, adapters: list[_Adapter]) -> Patched:
        found = self._cached(key)
        if found is not None:
            return found
        with self._merging:
            found = self._cached(key)  # another thread may have made it meanwhile
            if found is not None:
                return found
            loras = [adapter.lora for adapter in adapters]
            size = self._exchange.size(
                {path for lora in loras for path in (*lora.layers, *lora.whole_weights)}
            )
            self._make_room(size)
            made = self._exchange.patched(recipe.run(loras))
            with self._lock:
                known = {a.number for a in self._adapters.values()}
                if size <= self.cache_bytes and known.issuperset(key[1]):
                    self._cache[key] = made, size
            return made

    def _cached(self, key: _Key) -> Patched | None:
        with self._lock:
            if key not in self._cache:
                return None
            if not self._exchange.is_fresh(self._cache[key][0]):
                del self._cache[key]
                return None
            self._cache.move_to_end(key)
            return self._cache[key][0]

    def _make_room(self, size: int) -> None:
        """Drop the merges that were not used for longest, before the new one takes memory."""
        with self._lock:
            taken = sum(size for _, size in self._cache.values())
            while self._cache and taken + size > self.cache_bytes >= size:
                taken -= self._cache.popitem(last=False)[1][1]

    def _of(self, source: Source) -> _Adapter:
        """The adapter with that SHA-256, or of that name where the recipe has none."""
        if source.sha256 is None:
            return self._named(source.name)
        found = next((a for a in self._adapters.values() if a.lora.sha256 == source.sha256), None)
        if found is None:
            raise ParameterError(
                f"no adapter in the pool has the SHA-256 {source.sha256[:12]}... that the recipe gives for "
                f"{source.name!r}; add that file, or leave the SHA-256 out"
            )
        return found

    def _named(self, name: str) -> _Adapter:
        if name not in self._adapters:
            raise ParameterError(
                f"no adapter in the pool is called {name!r}{did_you_mean(name, self._adapters)}"
            )
        return self._adapters[name]

    def _refuse_taken(self, name: str) -> None:
        if name in self._adapters:
            raise ParameterError(f"an adapter is called {name!r} already; remove it first")
