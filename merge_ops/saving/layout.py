"""What a file is made of, for layers as they are stored; and how large it is before any is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..lora import LowRank
from ..merging.merged import Merged
from ..merging.merged_layer import MergedLayer
from ..merging.rank_rule import RankRule
from ..recipes import recipe_of
from .carried import file_header, hashes
from .experts import at_one_rank
from .ia3 import ia3_tensors
from .metadata import file_metadata, peft_config, with_hashes
from .stored import common_rank, largest_rank
from .tensors import file_tensors, whole_weight_tensors
from .verified import Content

_HASHES = "0" * 64, "0" * 8  # as long as those of a file


@dataclass(frozen=True, slots=True)
class Layout:
    """How one merge is laid out: ``stems`` are what the keys of each layer begin with."""

    merged: Merged
    form: str
    dtype: torch.dtype
    stems: dict[str, str]
    title: str
    stated: Mapping[str, str] = field(default_factory=dict)  # metadata that the caller gives

    def content(self, stored: Mapping[str, LowRank], rank: int | RankRule | None) -> Content:
        """Return tensors, metadata and configuration; ``rank`` is what the recipe says of the ranks."""
        merged = self.merged
        layers = at_one_rank(dict(stored))
        tensors = {key: tensor.cpu().contiguous() for key, tensor in self._tensors(layers).items()}
        metadata = self._metadata(layers, rank)
        metadata = with_hashes(metadata, self.form, *hashes(tensors, metadata))
        config = None
        if self.form == "peft":
            config = peft_config(layers, self.stems, merged.loras, merged.whole_weights, merged.ia3)
        return Content(tensors, metadata, config, layers, self.stems, merged.whole_weights)

    def size(self, ranks: Mapping[str, int], rule: RankRule) -> int:
        """Return the bytes of the weights file with these ranks, without computing any layer."""
        alpha = common_rank(self.merged, ranks) if self.form == "kohya" else None
        layers = at_one_rank(
            {
                name: self._blank(layer, largest_rank(layer, ranks), alpha)
                for name, layer in self.merged.layers.items()
            }
        )
        tensors = self._tensors(layers)
        metadata = with_hashes(self._metadata(layers, rule), self.form, *_HASHES)
        header, _ = file_header(tensors, metadata)
        return len(header) + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def _tensors(self, layers: dict[str, LowRank]) -> dict[str, torch.Tensor]:
        return {
            **file_tensors(layers, self.stems, self.form),
            **whole_weight_tensors(self.merged.whole_weights, self.stems, self.form, layers),
            **ia3_tensors(self.merged.ia3, self.dtype),
        }

    def _metadata(self, layers: dict[str, LowRank], rank: int | RankRule | None) -> dict[str, str]:
        recipe = recipe_of(self.merged, rank)
        own = file_metadata(layers, self.form, self.merged.loras, recipe, self.title)
        return {**own, **self.stated}

    def _blank(self, layer: MergedLayer, rank: int, alpha: float | None) -> LowRank:
        """A layer of the right shapes that has no values."""
        template = layer.template
        rows, columns = template.matrix_shape
        up = torch.empty(rows, rank, dtype=self.dtype, device="meta")
        down = torch.empty(rank, columns, dtype=self.dtype, device="meta")
        if template.layout == "vector":
            return LowRank(up[:, :1], down[:1, :1], 1.0, "vector")
        scale = 1.0 if alpha is None else alpha / rank
        return LowRank(up, down, scale, template.layout, template.kernel, padded_to=layer.padded_to)


def numbers(ranks: Mapping[str, int]) -> tuple[int, int, float]:
    """Return the smallest, the largest and the mean rank; zeros without layers."""
    values = list(ranks.values())
    return min(values, default=0), max(values, default=0), math.fsum(values) / max(len(values), 1)
