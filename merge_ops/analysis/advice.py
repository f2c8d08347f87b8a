"""Advice: sentences that say what the numbers of ``inspect`` mean for a merge.

The limits are rules of thumb; every sentence gives the numbers behind it. LoRAs are compared at strength 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..blocks.order import section_of
from .interference import Interference
from .relations import BlockComparison, Relation
from .repetition import Repetition
from .spectrum import LoraSpectrum

ALIKE = 0.9  # cosine above which two LoRAs are the same for most purposes
OVERLAP = 0.1  # cosine above which their sum overshoots: by more than 5 % if both are of one size
OPPOSED = -0.1  # cosine below which they work against each other
LOPSIDED = 3.0  # ratio of strengths at which the weaker one is lost
_MOSTLY = 0.5  # share of the conflict above which a part of the model is named
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def on_pairs(
    relations: Sequence[Relation], norms: Mapping[str, float], interference: Interference | None = None
) -> list[str]:
    """Return advice on LoRAs together, the most important first; ``norms`` are those of the whole LoRAs."""
    empty = [
        f"{name} changes nothing, because all its weights are zero; leave it out"
        for name, n in norms.items()
        if not n
    ]
    live = [relation for relation in relations if norms[relation.first] and norms[relation.second]]
    apart = [relation for relation in live if not relation.layers]
    near = [relation for relation in live if relation.layers]
    opposed = sorted((r for r in near if _opposition(r) <= OPPOSED), key=_opposition)
    alike = [r for r in near if r.cosine >= ALIKE]
    lopsided = sorted((r for r in near if _ratio(r) >= LOPSIDED), key=_ratio, reverse=True)
    overlap = sorted((r for r in near if OVERLAP <= r.cosine < ALIKE), key=lambda r: -r.cosine)
    is_crowded = interference is not None and interference.is_notable
    advice = [*empty, *_on_sum(near, norms)]
    if interference is not None and is_crowded and not (advice or opposed or alike or lopsided):
        advice.append(interference.sentence)  # pairs that explain it say more
    advice += [*map(_on_opposed, opposed), *map(_on_alike, alike), *map(_on_lopsided, lopsided)]
    advice += [*map(_on_overlap, overlap), *map(_on_apart, apart)]
    quiet = [r for r in near if r not in (*opposed, *alike, *lopsided, *overlap)]
    return [*advice, *_on_quiet(quiet, is_fine=not is_crowded)]


def on_streams(fact: Mapping[str, Any]) -> list[str]:
    """Return a sentence on how a LoRA for picture and sound divides between them, if it is one."""
    shares = fact["streams"]
    if not shares:
        return []
    return [
        f"{100 * shares['audio']:.0f} % of {fact['name']}'s energy is in audio layers and "
        f"{100 * shares['video']:.0f} % in video layers; block strengths such as 'audio:0.5' set them apart"
    ]


def on_ranks(spectrum: LoraSpectrum) -> str:
    """Return advice on the rank of a LoRA: how much of it is used, and what a smaller one would keep."""
    whole, name, rank = spectrum.whole, spectrum.name, spectrum.rank
    needed = whole.rank_for(0.9)
    if not needed:
        return f"{name} has no energy in any layer that was measured"
    sentence = f"90 % of {name}'s energy fits in rank {needed} of {max(rank, whole.rank_for(1.0))}"
    most = f" (based on {whole.layers} layers; {spectrum.unmeasured} were skipped to save time)"
    sentence += most if spectrum.unmeasured else ""
    size = next((size for size in _SIZES if whole.energy_at(size) >= 0.95), None)
    if size is None or 4 * size > 3 * max(rank, whole.rank_for(1.0)):
        return f"{sentence}: it uses its full rank, and a smaller one would lose some of it"
    return f"{sentence}: resizing to {size} keeps {_percent(whole.energy_at(size))}"


def _on_sum(relations: Sequence[Relation], norms: Mapping[str, float]) -> list[str]:
    """Return a sentence on all LoRAs together if adding them counts much of what they do twice."""
    parts = sum(norm**2 for norm in norms.values())
    shared = sum(r.cosine * r.norm_first * r.norm_second for r in relations)
    found = Repetition.of(parts + 2 * shared, parts)
    who = " and ".join(norms) if len(norms) == 2 else f"the {len(norms)} LoRAs"
    return [found.sentence(who)] if found.is_notable else []


def _opposition(relation: Relation) -> float:
    """Return the part of the cosine that comes from blocks that oppose each other; zero or negative."""
    size = relation.norm_first * relation.norm_second
    return sum(min(_product(block), 0.0) for block in relation.blocks) / size if size else 0.0


def _product(block: BlockComparison) -> float:
    return block.cosine * block.norm_first * block.norm_second


def _ratio(relation: Relation) -> float:
    low, high = sorted((relation.norm_first, relation.norm_second))
    return high / low if low else 0.0


def _stronger(relation: Relation) -> tuple[str, str]:
    """Return the names of the stronger and of the weaker LoRA."""
    if relation.norm_second > relation.norm_first:
        return relation.second, relation.first
    return relation.first, relation.second


def _where(relation: Relation, sign: int) -> str:
    """Return the part of the model with most of the agreement (+1) or opposition (-1), if there is one."""
    shares: dict[str, float] = {}
    for block in relation.blocks:
        section = section_of(block.block)[0]
        shares[section] = shares.get(section, 0.0) + max(sign * _product(block), 0.0)
    total = sum(shares.values())
    if len(shares) < 2 or not total:
        return ""
    section, share = max(shares.items(), key=lambda item: item[1])
    name = {"down": "down blocks", "mid": "middle block", "up": "up blocks"}.get(section, section)
    return f" mostly in the {name}" if share > _MOSTLY * total else ""


def _figures(relation: Relation) -> str:
    cosine, opposite = _signed(relation.cosine), _percent(relation.sign_conflict)
    return f"cosine {cosine}, opposite signs in {opposite} of shared weights"


def _on_opposed(r: Relation) -> str:
    there = _where(r, -1) or (" in some blocks" if r.cosine > OPPOSED else "")
    return (
        f"{r.first} and {r.second} work against each other{there} ({_figures(r)}): "
        f"a lower strength for {_stronger(r)[0]} may help"
    )


def _on_alike(r: Relation) -> str:
    return f"{r.first} and {r.second} make nearly the same change ({_figures(r)}): use one of them, or mean"


def _on_lopsided(r: Relation) -> str:
    strong, weak = _stronger(r)
    ratio = _ratio(r)
    return (
        f"{strong} is {ratio:.2g} times as strong as {weak} where both act: lower its strength "
        f"(at {1 / ratio:.2g} they are equally strong), or {weak} may hardly be visible"
    )


def _on_overlap(r: Relation) -> str:
    return (
        f"{r.first} and {r.second} pull the same way{_where(r, 1)} ({_figures(r)}), and a sum counts that "
        "twice: lower both strengths, or use even or mean"
    )


def _on_apart(r: Relation) -> str:
    return (
        f"{r.first} and {r.second} share no layer, so nothing is merged between them: they are for different "
        "models, or for different parts of one model"
    )


def _on_quiet(relations: Sequence[Relation], is_fine: bool) -> list[str]:
    """Return one sentence about all pairs that change the model in different directions."""
    if not relations:
        return []
    names = list(dict.fromkeys(name for r in relations for name in (r.first, r.second)))
    if len(relations) == 1:
        r = relations[0]
        who = f"{r.first} and {r.second} hardly touch each other ({_figures(r)}; chance gives 50 %)"
    else:
        low, high = min(r.cosine for r in relations), max(r.cosine for r in relations)
        count = (
            f"{len(names)} LoRAs" if len(names) * (len(names) - 1) // 2 == len(relations) else "other pairs"
        )
        who = f"the {count} hardly touch each other (cosines {_signed(low)} to {_signed(high)})"
    return [f"{who}: linear is fine" if is_fine else who.replace("hardly touch", "do not repeat")]


def _signed(cosine: float) -> str:
    return f"{cosine:+.2f}" if round(cosine, 2) else "0.00"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
