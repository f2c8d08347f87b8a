"""The recipe of a merge: its sources and settings, small enough for a file's metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..blocks import BlockStrengths
from ..errors import ParameterError, did_you_mean
from ..lora import Lora
from ..merging.merge import merge
from ..merging.merged import Merged
from ..merging.rank_rule import RankRule
from ..methods.peft_names import SPACES, get_combination_type
from ..methods.registry import Method, get_method
from ..progress import Progress
from ..readers import READERS
from ..version import __version__
from . import checked
from .imports import own_layout, parsed_text
from .source import Source

RECIPE_VERSION = 1
_PEFT_PARAMS = ("density", "majority_sign_method")
_KEYS = (
    "recipe", "version", "sources", "method", "combination_type", "svd_rank", "svd_clamp", "params", "space",
    "rank", "ranks", "scale", "seed", "reader", "keep", "learned", "extracted",
)  # fmt: skip
_MAX_RANK = 2**31
_MAX_SEED = 10**100


@dataclass(frozen=True, slots=True)
class Recipe:
    """The LoRAs of a merge and all its settings. A recipe holds no path, and is always valid.

    ``params``, ``space``, ``scale``, ``seed``, ``reader`` and ``keep`` have the same meaning as in ``merge``;
    ``rank`` is the rank of the result, whether it was requested when merging or when saving; ``ranks`` is the
    rule that chose the rank of each layer, if there was one. ``learned`` tells how the result was distilled,
    if it was: such a recipe cannot be run without the model. ``extracted`` names the base model, if the
    result is the difference of the source and that, and how it was made: that takes both models. ``warnings``
    list what an import from another program left out.

    Raises:
        UnknownMethodError, ParameterError: on creation, for a value that ``merge`` would refuse too.
    """

    sources: tuple[Source, ...]
    method: str | None = None  # linear, unless there is a combination_type
    combination_type: str | None = None
    svd_rank: int | None = None
    svd_clamp: float | None = None
    params: dict[str, Any] = field(default_factory=dict)
    space: str = "delta"
    rank: int | None = None
    ranks: RankRule | None = None
    scale: float = 1.0
    seed: int = 0
    reader: str = "peft"
    keep: str | None = None
    learned: dict[str, Any] | None = None
    extracted: dict[str, Any] | None = None
    version: str = __version__  # of the program that wrote it
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ParameterError("a recipe needs at least one source")
        if self.method is None and self.combination_type is None:
            object.__setattr__(self, "method", "linear")
        object.__setattr__(self, "params", self._checked_params(self._checked_method()))
        object.__setattr__(self, "scale", checked.number(self.scale, "scale"))
        checked.whole(self.seed, "seed", -_MAX_SEED, _MAX_SEED)
        checked.text(self.version, "version")
        if checked.text(self.reader, "reader") not in READERS:
            raise ParameterError(
                f"unknown reader {checked.shown(self.reader)}{did_you_mean(self.reader, READERS)}"
            )
        if self.keep is not None:
            checked.plain_name(self.keep, "keep")
        if self.learned is not None:
            checked.mapping(self.learned, "learned")
        if self.extracted is not None:
            checked.mapping(self.extracted, "extracted")
        for what, rank in (("rank", self.rank), ("svd_rank", self.svd_rank)):
            if rank is not None:
                checked.whole(rank, what, 1, _MAX_RANK)
        if checked.text(self.space, "space") not in SPACES:
            raise ParameterError(f"unknown space {checked.shown(self.space)}{did_you_mean('', SPACES)}")

    @classmethod
    def of(cls, merged: Merged, rank: int | RankRule | None = None) -> Recipe:
        """Return the recipe of a merge saved at ``rank``; the merge's own rank wins over it."""
        request, how = merged.request, merged.request.settings
        ranks, rank = (rank, None) if isinstance(rank, RankRule) else (request.cut_by, rank)
        sources = tuple(
            Source(
                checked.made_plain(lora.name),
                lora.sha256,
                weight,
                text_weight,
                _text(blocks),
                lora.adapter,
                request.is_apart(i),
            )
            for i, (lora, weight, text_weight, blocks) in enumerate(
                zip(merged.loras, request.weights, request.text_weights, request.blocks, strict=True)
            )
        )
        shared: dict[str, Any] = {
            "params": how.params, "scale": how.scale, "seed": how.seed, "reader": merged.reader,
            "keep": None if request.keep is None else checked.made_plain(request.keep),
            "learned": request.learned, "ranks": ranks, "extracted": request.extracted,
        }  # fmt: skip
        if request.combination_type is None:
            return cls(sources, how.method.name, space=how.space, rank=request.rank or rank, **shared)
        peft: dict[str, Any] = {
            "combination_type": request.combination_type,
            "svd_rank": how.rank,
            "svd_clamp": how.svd_clamp,
        }
        return cls(sources, rank=request.cut_to or rank, **peft, **shared)

    @classmethod
    def parse(cls, given: dict[str, Any] | str) -> Recipe:
        """Read a recipe from its own JSON, a LoRAX request, or mergekit's YAML or JSON of a LoRA merge.

        Raises:
            ParameterError, UnknownMethodError: naming an invalid key, or what cannot be expressed.
        """
        plain, warnings = own_layout(parsed_text(given) if isinstance(given, str) else given)
        checked.mapping(plain, "the recipe", _KEYS)
        if (number := plain.get("recipe")) != RECIPE_VERSION or isinstance(number, bool):
            raise ParameterError(
                f"the recipe has version {checked.shown(number)}, but only version {RECIPE_VERSION} is "
                "supported; update LoRA Alloy, or check the key 'recipe'"
            )
        listed = checked.items(plain.get("sources"), "sources")
        names = ("name", "sha256", "weight", "text_weight", "blocks", "adapter", "apart")
        sources = tuple(Source(**({"name": None} | checked.mapping(s, "a source", names))) for s in listed)
        rest = {key: value for key, value in plain.items() if key not in ("recipe", "sources")}
        if rest.get("ranks") is not None:
            rest["ranks"] = RankRule.parse(rest["ranks"])
        return cls(sources, **rest, warnings=warnings)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, in the layout that is written into files."""
        how: dict[str, Any] = (
            {"method": self.method, "space": self.space, "rank": self.rank}
            if self.combination_type is None
            else {"combination_type": self.combination_type, "svd_rank": self.svd_rank,
                  "svd_clamp": self.svd_clamp, **({} if self.rank is None else {"rank": self.rank})}
        )  # fmt: skip
        return {
            "recipe": RECIPE_VERSION,
            "version": self.version,
            "sources": [source.to_dict() for source in self.sources],
            **how,
            **({} if self.ranks is None else {"ranks": self.ranks.to_dict()}),
            "params": dict(self.params),
            "scale": self.scale,
            "seed": self.seed,
            **({} if self.reader == "peft" else {"reader": self.reader}),
            **({} if self.keep is None else {"keep": self.keep}),
            **({} if self.learned is None else {"learned": self.learned}),
            **({} if self.extracted is None else {"extracted": self.extracted}),
        }

    def to_json(self, indent: int | None = None) -> str:
        """Return ``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @property
    def weights(self) -> list[float]:
        """One weight per source."""
        return [source.weight for source in self.sources]

    @property
    def text_weights(self) -> list[float]:
        """One weight per source, for the layers of text encoders."""
        return [s.weight if s.text_weight is None else s.text_weight for s in self.sources]

    @property
    def blocks(self) -> list[str | None]:
        """The block strengths of each source; None for a source without any."""
        return [source.blocks for source in self.sources]

    @property
    def apart(self) -> list[bool]:
        """Which sources are added after the merge of the others."""
        return [source.apart for source in self.sources]

    def keywords(self) -> dict[str, Any]:
        """Return the keywords of ``merge``, except for the scale and what there is one of per LoRA.

        Raises:
            ParameterError: if the result was distilled or extracted, which ``merge`` cannot do.
        """
        if self.extracted is not None:
            raise ParameterError(
                "this LoRA was extracted from two models; to make it again, extract it from the source and "
                "the base of the recipe, with the settings under 'extracted'"
            )
        if self.learned is not None:
            raise ParameterError(
                "this merge was distilled, and making it again needs the base model: record its LoRAs, and "
                "distill them with the settings under 'learned' in the recipe"
            )
        own: dict[str, Any] = (
            {"method": self.method, "space": self.space, "rank": self.rank}
            if self.combination_type is None
            else {"combination_type": self.combination_type, "svd_rank": self.svd_rank,
                  "svd_clamp": self.svd_clamp}
        )  # fmt: skip
        return {**own, "seed": self.seed, "reader": self.reader, "keep": self.keep, **self.params}

    def run(
        self, loras: Sequence[Lora], *, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, progress: Progress | None = None, base: Any = None,
    ) -> Merged:  # fmt: skip
        """Merge LoRAs, given in the order of ``sources``, with the settings of the recipe.

        ``base`` is the base model, which some adapters need; see ``merge``.

        Raises:
            ParameterError: if there are more or fewer LoRAs than sources.
            IncompatibleLoraError: as in ``merge``.
        """
        if len(loras) != len(self.sources):
            raise ParameterError(f"the recipe has {len(self.sources)} sources, but {len(loras)} were given")
        merged = merge(
            loras, self.weights, text_weights=self.text_weights, blocks=self.blocks, scale=self.scale,
            device=device, dtype=dtype, progress=progress, base=base, apart=self.apart, **self.keywords(),
        )  # fmt: skip
        return self.cut(merged)

    def cut(self, merged: Merged) -> Merged:
        """Return the merge at the recipe's rank or ranks, if ``merge`` could not be given them.

        That is so for a rule, and for combination types: their ``svd_rank`` is a part of the method, not the
        result's rank.
        """
        if self.combination_type is not None and self.rank is not None:
            merged = merged.truncated(self.rank)
        return merged if self.ranks is None else merged.truncated(self.ranks)

    def _checked_method(self) -> Method:
        if self.combination_type is None:
            if self.svd_rank is not None or self.svd_clamp is not None:
                raise ParameterError(
                    "svd_rank and svd_clamp belong to combination_type; use rank with a method"
                )
            return get_method(checked.text(self.method, "method"))
        if self.method is not None or self.space != "delta":
            raise ParameterError(
                "a recipe with combination_type cannot have a method or a space; leave them out"
            )
        if self.svd_clamp is not None and not 0 <= checked.number(self.svd_clamp, "svd_clamp") <= 1:
            raise ParameterError(f"svd_clamp {self.svd_clamp} is outside [0, 1]")
        return get_method(
            get_combination_type(checked.text(self.combination_type, "combination_type")).method
        )

    def _checked_params(self, method: Method) -> dict[str, Any]:
        given = checked.mapping(self.params, "params", None if self.method else _PEFT_PARAMS)
        known = {param.name for param in method.params}
        for name, value in given.items():
            if not isinstance(value, str | bool):
                checked.number(value, name)
        if self.combination_type is not None:  # as in PEFT, parameters that a type does not use are ignored
            given = {name: value for name, value in given.items() if name in known}
        return method.resolve(given)


def _text(blocks: BlockStrengths | None) -> str | None:
    return None if blocks is None else str(blocks)


def recipe_of(merged: Merged, rank: int | RankRule | None = None) -> dict[str, Any]:
    """Return the recipe of a merge as the plain values that are written into a file."""
    return Recipe.of(merged, rank).to_dict()
