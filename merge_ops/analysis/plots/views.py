"""Drawing the four views: similarity, sign conflict, norms, spectrum."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from ...blocks.order import in_model_order
from ..relations import BlockComparison, Relation
from ..study import Study
from .curves import draw_curves
from .page import HEADING, THEMES, Page, Theme, nice_top, shortened
from .strips import Axis, Strip, draw_strips, lay_out

_MOST = 6  # strips per picture
_EVEN = 0.52  # share of opposite signs above which chance and sampling do not explain it


def draw(study: Study, view: str | None = None, energy: float = 0.95, theme: str = "light") -> Image.Image:
    """Draw a view, 960 pixels wide; the picture states what it leaves out for lack of room.

    Args:
        study: the study to show.
        view: a name in ``VIEWS``; for one LoRA the spectrum replaces a comparison.
        energy: the share of energy that the ranks in the spectrum's bars keep.
        theme: a name in ``THEMES``, ``light`` or ``dark``.
    """
    page, chosen = Page(THEMES[theme]), study.view(view)
    page.lines(_heading(study, chosen), HEADING)
    page.y += 8
    _VIEWS[chosen](page, study, energy)
    if chosen != (view or chosen):
        page.note(f"A single LoRA cannot be compared, so this shows its spectrum instead of {view}.")
    return page.finished()


def _heading(study: Study, view: str) -> str:
    names = (
        " and ".join(shortened(name, 250, HEADING) for name in study.names)
        if len(study.names) < 3
        else f"{len(study.names)} LoRAs"
    )
    title = {
        "similarity": "Similarity",
        "sign_conflict": "Sign conflict",
        "norms": "Norms",
        "spectrum": "Spectrum",
    }
    return f"{title[view]} of {names}"


def _similarity(page: Page, study: Study, _energy: float) -> None:
    page.note("Cosine of the changes in each block: +1 the same, 0 unrelated, -1 opposite.")
    relations = _chosen(page, study.relations, lambda r: -abs(r.cosine))
    largest = max((abs(b.cosine) for r in relations for b in r.blocks), default=0.0)
    limit = next(limit for limit in (0.25, 0.5, 1.0) if largest <= limit or limit == 1.0)
    axis = Axis(-limit, limit, _signed, (-limit, 0.0, limit), show_tick=_tick)
    colour = _two_colours(lambda value: value >= 0, page.theme.positive, page.theme.negative)
    _pairs(page, relations, axis, colour, lambda b: b.cosine)


def _sign_conflict(page: Page, study: Study, _energy: float) -> None:
    page.note(
        "Share of the weights that one LoRA increases and the other decreases. Unrelated LoRAs have 50 %: "
        "only what is above the dashed line is conflict."
    )
    relations = _chosen(page, study.relations, lambda r: -r.sign_conflict)
    axis = Axis(0, 1, _percent, (0.0, 0.5, 1.0), dashed=0.5)
    colour = _two_colours(lambda value: value < _EVEN, page.theme.neutral, page.theme.negative)
    _pairs(page, relations, axis, colour, lambda b: b.sign_conflict)


def _norms(page: Page, study: Study, _energy: float) -> None:
    page.note("Size of the change in each block at strength 1 (Frobenius norm), on one scale.")
    order = sorted(range(len(study.norms)), key=lambda i: -study.facts[i]["norm"])[:_MOST]
    _say_left_out(page, len(order), len(study.norms), "LoRAs shown, the strongest ones")
    shown = sorted(order)
    top = nice_top(max((v for i in shown for v in study.norms[i].values()), default=0.0))
    axis = Axis(0, top, lambda value: f"{value:.3g}", (0.0, top / 2, top))
    strips = [
        Strip(
            study.names[i],
            f"{study.facts[i]['norm']:.3g}",
            study.norms[i],
            _plain(page.theme, i),
            _colour(page.theme, i),
        )
        for i in shown
    ]
    _strips(page, strips, axis, [block for i in shown for block in study.norms[i]])


def _spectrum(page: Page, study: Study, energy: float) -> None:
    page.note(
        "Above: the energy (squared norm) that a rank keeps of every layer. Below: the rank that keeps "
        f"{100 * energy:g} % of each block."
    )
    shown = list(study.spectra)[:_MOST]
    _say_left_out(page, len(shown), len(study.spectra), "LoRAs shown, the first ones")
    needed = max((s.whole.rank_for(0.995) for s in shown), default=1)
    draw_curves(page, shown, max(4, min(max(s.rank for s in shown), 2 * needed)))
    ranks = [{block: float(part.rank_for(energy)) for block, part in s.blocks.items()} for s in shown]
    top = nice_top(
        max((rank for values in ranks for rank in values.values()), default=1.0), (1, 2, 4, 6, 8, 10)
    )
    axis = Axis(0, top, lambda value: f"{value:g}", (0.0, top / 2, top))
    strips = [
        Strip(
            s.name,
            f"{s.whole.rank_for(energy)} of {s.rank}",
            values,
            _plain(page.theme, i),
            _colour(page.theme, i),
        )
        for i, (s, values) in enumerate(zip(shown, ranks, strict=True))
    ]
    _strips(page, strips, axis, [block for s in shown for block in s.blocks])
    for s in shown:
        if s.unmeasured:
            page.note(f"{s.name}: {s.unmeasured} full-rank layers were skipped to save time.")


def _pairs(
    page: Page,
    relations: Sequence[Relation],
    axis: Axis,
    colour: Callable[[float], str],
    value: Callable[[BlockComparison | Relation], float],
) -> None:
    strips = [
        Strip(
            f"{r.first} / {r.second}",
            axis.show(value(r)) if r.layers else "no shared layer",
            {block.block: value(block) for block in r.blocks},
            colour,
        )
        for r in relations
    ]
    _strips(page, strips, axis, [block.block for r in relations for block in r.blocks])


def _strips(page: Page, strips: Sequence[Strip], axis: Axis, blocks: Sequence[str]) -> None:
    page.y += 12
    height = 200 if len(strips) == 1 else 130 if len(strips) < 4 else 80
    draw_strips(page, strips, axis, lay_out(in_model_order(blocks)), height)


def _chosen(page: Page, relations: Sequence[Relation], key: Callable[[Relation], float]) -> list[Relation]:
    """Return the most important pairs, as many as there is room for, in their original order."""
    chosen = sorted(sorted(relations, key=key)[:_MOST], key=relations.index)
    _say_left_out(page, len(chosen), len(relations), "pairs shown, those with the largest values")
    return chosen


def _say_left_out(page: Page, shown: int, total: int, what: str) -> None:
    if shown < total:
        page.note(f"{shown} of {total} {what}; the JSON lists all.")


def _two_colours(first: Callable[[float], bool], yes: str, no: str) -> Callable[[float], str]:
    return lambda value: yes if first(value) else no


def _plain(theme: Theme, number: int) -> Callable[[float], str]:
    return lambda _value: _colour(theme, number)


def _colour(theme: Theme, number: int) -> str:
    return theme.series[number % len(theme.series)]


def _signed(value: float) -> str:
    return f"{value:+.2f}" if round(value, 2) else "0.00"


def _tick(value: float) -> str:
    return f"{value:+g}" if value else "0"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


_VIEWS = {"similarity": _similarity, "sign_conflict": _sign_conflict, "norms": _norms, "spectrum": _spectrum}
