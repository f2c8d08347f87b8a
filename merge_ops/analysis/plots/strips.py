"""Drawing strips of bars, one bar per block of the model, with the block names below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from ...blocks.order import section_of
from .page import FIGURE, LEFT, RIGHT, SMALL, TITLE, Page, scale_of, shortened, width_of

_WIDEST, _GAP = 130, 8  # widest room for a bar, and gap between sections, in pixels
_ROOM_FOR_VALUE = 66


@dataclass(frozen=True)
class Slot:
    """The horizontal room for the bar of one block, in pixels."""

    block: str
    section: str
    label: str
    left: float
    width: float
    bar_width: float  # the same for all blocks

    @property
    def middle(self) -> float:
        return self.left + self.width / 2

    @property
    def bar(self) -> tuple[float, float]:
        """The left and right edge of the bar."""
        half = self.bar_width / 2
        return self.middle - half, self.middle + half


@dataclass(frozen=True)
class Strip:
    """One row: a title, the overall figure, and a value per block."""

    title: str
    figure: str
    values: dict[str, float]
    colour: Callable[[float], str]
    swatch: str | None = None


@dataclass(frozen=True)
class Axis:
    """The vertical axis that all strips of a picture share."""

    low: float
    high: float
    show: Callable[[float], str]
    ticks: tuple[float, ...]
    base: float = 0.0  # the value where bars begin
    dashed: float | None = None
    show_tick: Callable[[float], str] | None = None


def lay_out(blocks: Sequence[str]) -> list[Slot]:
    """Room for each block, in the given order, with a gap wherever a section ends."""
    runs = [(title, list(group)) for title, group in groupby(blocks, key=lambda block: section_of(block)[0])]
    room = RIGHT - LEFT - _GAP * (len(runs) - 1)
    width = min(room / max(len(blocks), 1), _WIDEST)
    least = [width_of(title, SMALL) + 10 for title, _ in runs]
    for _ in range(8):  # sections whose title is wider than their bars take room from the others
        wide = [len(run) * width < need for (_, run), need in zip(runs, least, strict=True)]
        free = room - sum(need for need, is_wide in zip(least, wide, strict=True) if is_wide)
        bars = sum(len(run) for (_, run), is_wide in zip(runs, wide, strict=True) if not is_wide)
        if not bars or free / bars < 6:
            break
        width = min(free / bars, _WIDEST)
    else:
        return _placed(
            runs, [max(len(run) * width, need) for (_, run), need in zip(runs, least, strict=True)]
        )
    return _placed(runs, [len(run) * min(room / len(blocks), _WIDEST) for _, run in runs])


def _placed(runs: list[tuple[str, list[str]]], widths: list[float]) -> list[Slot]:
    slots, x = [], float(LEFT)
    narrowest = min((width / len(run) for (_, run), width in zip(runs, widths, strict=True)), default=0.0)
    bar = min(max(0.72 * narrowest, 2.0), 64.0)
    for (title, run), width in zip(runs, widths, strict=True):
        each = width / len(run)
        for i, block in enumerate(run):
            slots.append(Slot(block, title, section_of(block)[1], x + i * each, each, bar))
        x += width + _GAP
    return slots


def draw_strips(page: Page, strips: Sequence[Strip], axis: Axis, slots: Sequence[Slot], height: int) -> None:
    """Draw all strips, one below the other, and then the block names."""
    for strip in strips:
        _draw_strip(page, strip, axis, slots, height)
    _draw_names(page, slots)


def _draw_strip(page: Page, strip: Strip, axis: Axis, slots: Sequence[Slot], height: int) -> None:
    figure_room = width_of(strip.figure, FIGURE) + 24
    x = float(LEFT)
    if strip.swatch:
        page.pen.rounded_rectangle((x, page.y + 6, x + 22, page.y + 28), 4, fill=strip.swatch)
        x += 32
    page.text(x, page.y + 2, shortened(strip.title, RIGHT - x - figure_room, TITLE), TITLE)
    page.text(RIGHT, page.y, strip.figure, FIGURE, anchor="ra")
    top, bottom = page.y + 64, page.y + 64 + height
    _draw_bands(page, slots, top - 24, bottom)
    place = scale_of(axis.low, axis.high, top, bottom)
    for tick in axis.ticks:
        page.pen.line((LEFT, place(tick), RIGHT, place(tick)), page.theme.line)
        page.text(LEFT - 10, place(tick), (axis.show_tick or axis.show)(tick), SMALL, page.theme.quiet, "rm")
    for slot in slots:
        if slot.block in strip.values:
            _draw_bar(page, slot, strip.values[slot.block], strip, axis, place)
    if axis.dashed is not None:
        page.dashed(place(axis.dashed))
    page.pen.line((LEFT, place(axis.base), RIGHT, place(axis.base)), page.theme.quiet, 2)
    page.y = bottom + 26


def _draw_bar(
    page: Page, slot: Slot, value: float, strip: Strip, axis: Axis, place: Callable[[float], float]
) -> None:
    left, right = slot.bar
    ends = sorted((place(axis.base), place(value)))
    page.pen.rectangle((round(left), round(ends[0]), round(right), round(ends[1])), fill=strip.colour(value))
    words = axis.show(value)
    if slot.width >= _ROOM_FOR_VALUE:
        above = value >= axis.base or ends[1] - ends[0] < 2
        y = ends[0] - 3 if above else ends[1] + 3
        page.text(slot.middle, y, words, SMALL, page.theme.quiet, "mb" if above else "mt")


def _draw_bands(page: Page, slots: Sequence[Slot], top: float, bottom: float) -> None:
    for number, (left, right, _) in enumerate(_sections(slots)):
        if number % 2 == 0:
            page.pen.rectangle((left, top, right, bottom), fill=page.theme.band)


def _draw_names(page: Page, slots: Sequence[Slot]) -> None:
    """Draw section titles and block labels, only every second or fifth label if there is no room for all."""
    y = page.y - 16
    for left, right, run in _sections(slots):
        widest = max(width_of(slot.label, SMALL) for slot in run) + 8
        every = next((n for n in (1, 2, 5, 10, 20) if n * run[0].width >= widest), 50)
        for i, slot in enumerate(run):
            if i % every == 0:
                page.text(slot.middle, y, slot.label, SMALL, page.theme.quiet, "ma")
        title = shortened(run[0].section, right - left + _GAP, SMALL)
        page.text((left + right) / 2, y + 30, title, SMALL, anchor="ma")
    page.y = y + 64


def _sections(slots: Sequence[Slot]) -> list[tuple[float, float, list[Slot]]]:
    """Return the left edge, right edge and slots of each section."""
    sections = []
    for _, group in groupby(slots, key=lambda slot: slot.section):
        run = list(group)
        sections.append((run[0].left, run[-1].left + run[-1].width, run))
    return sections
