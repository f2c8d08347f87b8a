"""The study behind ``inspect``: facts, relations, norms, spectra and advice about some LoRAs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from ..errors import ParameterError, did_you_mean
from ..lora import Lora
from ..merging.align import align
from ..merging.request import Request
from .advice import on_pairs, on_ranks, on_streams
from .facts import describe
from .interference import Interference, interference_of
from .relations import Relation, relate
from .spectrum import SHARES, LoraSpectrum, Spectrum, spectrum_of
from .view_names import SPECTRUM, VIEWS

_OF_PAIRS = VIEWS[:2]


@dataclass(frozen=True)
class Study:
    """The results of a study; LoRAs are in the order in which they were given."""

    facts: tuple[dict[str, Any], ...]
    relations: tuple[Relation, ...]  # of each pair
    norms: tuple[dict[str, float], ...]  # of each LoRA, by block
    spectra: tuple[LoraSpectrum, ...]
    interference: Interference | None = None  # of those that are merged together

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the LoRAs."""
        return tuple(fact["name"] for fact in self.facts)

    @cached_property
    def pair_advice(self) -> tuple[str, ...]:
        """Sentences on what matters when the LoRAs are combined, the most important first."""
        norms = {
            spectrum.name: fact["norm"]
            for spectrum, fact in zip(self.spectra, self.facts, strict=True)
            if not _needs_base(fact)
        }
        known = [r for r in self.relations if r.first in norms and r.second in norms]
        return tuple(on_pairs(known, norms, self.interference))

    @cached_property
    def rank_advice(self) -> tuple[str, ...]:
        """One sentence per LoRA on how much of its rank it uses."""
        return tuple(
            f"what {fact['name']} changes depends on the base model, so it is not measured here"
            if _needs_base(fact)
            else on_ranks(spectrum)
            for spectrum, fact in zip(self.spectra, self.facts, strict=True)
        )

    def view(self, name: str | None = None) -> str:
        """Return the view to draw; for a single LoRA the spectrum replaces comparisons.

        Raises:
            ParameterError: if no view has that name.
        """
        if name is not None and name not in VIEWS:
            raise ParameterError(f"unknown view {name!r}{did_you_mean(name, VIEWS)}")
        chosen = name or VIEWS[0]
        return SPECTRUM if chosen in _OF_PAIRS and not self.relations else chosen

    @property
    def advice(self) -> tuple[str, ...]:
        """All sentences: first on pairs, then on streams, then on ranks."""
        streams = [sentence for fact in self.facts for sentence in on_streams(fact)]
        return (*self.pair_advice, *streams, *self.rank_advice)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        together = self.interference
        return {
            "advice": list(self.advice),
            "loras": list(self.facts),
            "interference": dict(zip(together.names, together.shares, strict=True)) if together else {},
            "pairs": [_without_blocks(relation) for relation in self.relations],
            "comparison": [asdict(row) for relation in self.relations for row in relation.blocks],
            "norms": [
                {"name": name, "blocks": blocks} for name, blocks in zip(self.names, self.norms, strict=True)
            ],
            "spectra": [_spectrum_dict(spectrum) for spectrum in self.spectra],
        }


def study(loras: Sequence[Lora], groups: Sequence[Sequence[int]] = ()) -> Study:
    """Study LoRAs, alone and in pairs.

    Args:
        loras: the LoRAs.
        groups: the places in ``loras``, from 0, of those that are merged with each other, where not all are,
            as for the two experts of Wan 2.2. A pair that no group has is left out, and the interference is
            that of the group where it is largest.

    Raises:
        IncompatibleLoraError: if two LoRAs have different shapes for a layer.
    """
    loras = list(loras)
    groups = groups or [range(len(loras))]
    meeting = {pair for group in groups for pair in combinations(sorted(group), 2)}
    relations = relate(loras)
    found = [_interference([loras[place] for place in group]) for group in groups]
    return Study(
        tuple(describe(lora, norm) for lora, norm in zip(loras, relations.norms, strict=True)),
        tuple(
            relation
            for pair, relation in zip(combinations(range(len(loras)), 2), relations.pairs, strict=True)
            if pair in meeting
        ),
        relations.block_norms,
        tuple(map(spectrum_of, loras)),
        max(filter(None, found), key=lambda one: one.mean, default=None),
    )


def _interference(loras: list[Lora]) -> Interference | None:
    if len(loras) < 2:
        return None
    return interference_of(align(loras, Request.of(loras)), [lora.name for lora in loras])


def _needs_base(fact: dict[str, Any]) -> bool:
    """Return True for a LoRA whose deltas all depend on the base model."""
    return bool(fact["layers"]) and not fact["ranks"]


def _without_blocks(relation: Relation) -> dict[str, Any]:
    return {key: value for key, value in asdict(relation).items() if key != "blocks"}


def _spectrum_dict(spectrum: LoraSpectrum) -> dict[str, Any]:
    return {
        "name": spectrum.name,
        "rank": spectrum.rank,
        "layers": spectrum.whole.layers,
        "unmeasured": spectrum.unmeasured,
        "ranks_for": _ranks_for(spectrum.whole),
        "energy_at": {
            str(rank): round(spectrum.whole.energy_at(rank), 6) for rank in _powers(spectrum.whole)
        },
        "blocks": {block: _ranks_for(part) for block, part in spectrum.blocks.items()},
    }


def _ranks_for(spectrum: Spectrum) -> dict[str, int]:
    return {f"{share:g}": spectrum.rank_for(share) for share in SHARES}


def _powers(spectrum: Spectrum) -> list[int]:
    """Return 1, 2, 4, ... up to the rank that keeps everything."""
    last = spectrum.rank_for(1.0)
    return [2**i for i in range(max(last, 1).bit_length() + 1) if 2**i < 2 * last]
