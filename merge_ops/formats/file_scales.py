"""The scales of the layers of one file: its alpha tensors first, then what its metadata state.

Alpha tensors win over metadata, and the rank of the tensors over a stated one. What the metadata say against
that becomes a warning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..adapters.module import RawModule, stored_alpha
from ..adapters.reading import rank_in_tensors
from ..errors import LoraFormatError
from ..lora import Lora
from ..names.spelling import DOTTED_COMPONENTS, canonical_name
from .stated_scale import diffusers_statements, flat_statements, part_of
from .statements import number
from .warned import ranks_in, warnings_of_config

_HALF_MAX = 65504  # of float16, where larger alphas end, or become infinite
_CLOSE = 1e-2  # relative; alpha tensors may be stored in float16 or bfloat16


@dataclass(slots=True)
class _Seen:
    """What was found while the modules were read.

    Contradictions are ``(module, alpha that is used, alpha that is stated, key that states it)``.
    """

    against_tensors: list[tuple[str, float, float, str]] = field(default_factory=list)
    against_diffusers: list[tuple[str, float, float, str]] = field(default_factory=list)
    without_effect: list[tuple[str, float | None]] = field(default_factory=list)  # whole LoKr, with its alpha
    alphas: list[float] = field(default_factory=list)
    without_alpha: list[tuple[str, int]] = field(
        default_factory=list
    )  # and without a stated one, with its rank
    notes: dict[str, None] = field(default_factory=dict)


class FileScales:
    """Resolves the scale of each module of a file, and remembers what contradicts it."""

    def __init__(self, metadata: dict[str, str]) -> None:
        """Read what the metadata state.

        Raises:
            LoraFormatError: if diffusers' own entry is damaged, or a pattern is none.
        """
        self._diffusers = diffusers_statements(metadata)
        self._flat, self._modules = flat_statements(metadata)
        self._trained = metadata if "ss_network_alpha" in metadata or "ss_network_dim" in metadata else {}
        self._states = bool(self._diffusers or self._flat or self._modules or self._trained)
        self._seen = _Seen()

    def scale_of(self, module: RawModule) -> float | None:
        """Return the scale that the metadata give a module; None where its own alpha decides.

        Raises:
            LoraFormatError: if the metadata decide and cannot be used.
        """
        if not self._states:
            return None
        is_scaled, rank = rank_in_tensors(module)
        if not is_scaled or rank == 0:
            return None
        alpha = stored_alpha(module) if "alpha" in module.tensors else None
        if rank is None:
            self._seen.without_effect.append((module.stem, alpha))
            return None
        stated = self._stated(module.stem, rank, alpha is None)
        if alpha is None:
            if stated is None:
                self._seen.without_alpha.append((module.stem, rank))
            return None if stated is None else stated[0]
        self._seen.alphas.append(alpha)
        if stated is not None and not _close(stated[0] * rank, alpha):
            self._seen.against_tensors.append((module.stem, alpha, stated[0] * rank, stated[1]))
        return None

    def _stated(self, stem: str, rank: int, decides: bool) -> tuple[float, str] | None:
        """The scale that the metadata state for a module, and the key that does."""
        if not (self._diffusers or self._flat or self._modules):
            return None
        name = canonical_name(stem)
        component, _, path = name.partition(".")
        if component not in DOTTED_COMPONENTS:
            component, path = "", name
        found: list[tuple[float, str]] = []
        single = self._modules.get(name)
        if single is not None and (alpha := number(single.value)) is not None:
            found.append((alpha / rank, single.key))
        for parts in (self._diffusers, self._flat):
            own = part_of(parts, component) if parts else None
            if own is None:
                continue
            if own.problem and decides:
                raise LoraFormatError(
                    f"the metadata contradict themselves or are damaged: {own.problem}, and {stem} has no "
                    "alpha of its own; remove what is wrong from the metadata"
                )
            own.seen[path] = rank
            if own.note and decides:
                self._seen.notes[own.note] = None
            if (scale := own.scale(path, rank)) is not None:
                found.append((scale, own.key))
        if len(found) > 1 and not _close(found[0][0], found[1][0]):
            self._seen.against_diffusers.append((stem, found[0][0] * rank, found[1][0] * rank, found[1][1]))
        return found[0] if found else None

    def warnings(self, lora: Lora) -> list[str]:
        """Return where the metadata contradict the tensors of the file, or each other."""
        lines = [*self._seen.notes, *self._contradictions(), *self._of_training()]
        for parts in (self._diffusers, self._flat):
            for part, own in parts.items():
                lines += warnings_of_config(own.config, ranks_in(lora, part) or own.seen)
        return lines

    def _contradictions(self) -> list[str]:
        lines = []
        for rows, winner in (
            (self._seen.against_tensors, "the alpha tensors say"),
            (self._seen.against_diffusers, "other metadata say"),
        ):
            if rows:
                stem, used, stated, key = rows[0]
                lines.append(
                    f"the metadata {key!r} state alpha {stated:g} for {_counted(rows, stem)}, and {winner} "
                    f"{used:g}; {used:g} is used"
                )
        return lines

    def _of_training(self) -> list[str]:
        """What kohya's notes about the training, which no reader takes for the scale, say against it."""
        alpha, dim = (number(self._trained.get(f"ss_network_{name}")) for name in ("alpha", "dim"))
        lines = self._of_whole_factors(alpha, dim)
        seen = self._seen
        rescaled = "rs_lora" in self._trained.get("ss_network_args", "")
        if alpha is None or not math.isfinite(alpha):
            return lines
        if seen.alphas and not rescaled and not any(_close(alpha, own) for own in seen.alphas):
            lines.append(
                f"ss_network_alpha is {alpha:g} in the metadata, and the alpha tensors say "
                f"{seen.alphas[0]:g}; the tensors are used"
            )
        if seen.without_alpha and not seen.alphas:
            stem, rank = seen.without_alpha[0]
            if not _close(alpha, rank):
                lines.append(
                    f"the file has no alpha tensors, so it is read at scale 1, as other programs read it; "
                    f"ss_network_alpha is {alpha:g}, and the rank of {_counted(seen.without_alpha, stem)} is "
                    f"{rank}: if that was not folded in, the right weight is {alpha / rank:g}"
                )
        return lines

    def _of_whole_factors(self, alpha: float | None, dim: float | None) -> list[str]:
        """LoKrs whose factors are whole have scale 1 whatever alpha says, and some trainers scaled them."""
        flat = next((own.config for own in self._flat.values() if "r" in own.config), {})
        stated, said = flat.get("r", dim), flat.get("lora_alpha", alpha)
        if not stated or not math.isfinite(stated):
            return []
        alphas = [(stem, said if own is None else own) for stem, own in self._seen.without_effect]
        rows = [
            (stem, own)
            for stem, own in alphas
            if own is not None and abs(own) < _HALF_MAX and not _close(own, stated)
        ]
        if not rows:
            return []
        stem, own = rows[0]
        return [
            f"alpha {own:g} and the stated rank {stated:g} have no effect on {_counted(rows, stem)}, whose "
            f"factors are whole: scale 1 is used, as LyCORIS and ComfyUI do; if the LoRA is too strong, its "
            f"trainer applied {own / stated:g}, which is then the right weight"
        ]


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_CLOSE)


def _counted(rows: Sequence[object], stem: str) -> str:
    return f"{len(rows)} layer{'s' * (len(rows) != 1)}, such as {stem}"
