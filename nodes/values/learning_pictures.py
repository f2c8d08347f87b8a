"""Pictures of learning: bars of what a merge keeps, and the curve of a training. Needs Pillow only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ...merge_ops.analysis.plots.page import THEMES, Theme

# of the curve, which is drawn for a page whose theme is not known: legible on white and on black
_CLEAR, _INK, _LINE = (0, 0, 0, 0), "#868686", "#86868680"
_COLOURS = ("#3b82d6", "#cf7500")
_WIDTH, _MARGIN = 960, 32
_TEXT, _LINE_HEIGHT, _BAR = 24, 36, 34
_CURVE = 480, 240


@dataclass(frozen=True, slots=True)
class Kept:
    """What one merge keeps: a share of each LoRA by name, 1 for all and below 0 for less than nothing."""

    title: str
    shares: Mapping[str, float]


def draw_bars(rows: Sequence[Kept], theme: str = "light") -> Image.Image:
    """Draw a group of bars for each LoRA, one bar for each merge, from 0 to 100 %, as an RGB picture.

    A node shows it at about half its size; ``theme`` is a name in ``THEMES``.
    """
    colours, font = THEMES[theme], ImageFont.load_default(_TEXT)
    names = list(rows[0].shares)
    group = _LINE_HEIGHT + _BAR * len(rows) + 22
    top = _MARGIN + _LINE_HEIGHT * len(rows) + 18
    picture = Image.new("RGB", (_WIDTH, top + group * len(names) + _LINE_HEIGHT + 4), colours.paper)
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(rows):
        y = _MARGIN + _LINE_HEIGHT * number
        draw.rounded_rectangle((_MARGIN, y + 3, _MARGIN + 20, y + 23), 4, fill=_bar_colour(colours, number))
        draw.text((_MARGIN + 32, y), _short(row.title, _WIDTH - 3 * _MARGIN, font), colours.text, font)
    right = _WIDTH - 110
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = _MARGIN + (right - _MARGIN) * share
        draw.line((x, top, x, top + group * len(names)), colours.line, 2)
        anchor = "la" if share == 0 else "ma"
        draw.text((x, top + group * len(names) + 6), percent(share), colours.quiet, font, anchor)
    for place, name in enumerate(names):
        y = top + group * place + 4
        shown = _short(name, right - _MARGIN, font)
        draw.rectangle((_MARGIN + 2, y, _MARGIN + 4 + font.getlength(shown), y + 28), colours.paper)
        draw.text((_MARGIN + 4, y), shown, colours.text, font)
        for number, row in enumerate(rows):
            share = row.shares[name]
            end = _MARGIN + (right - _MARGIN) * min(max(share, 0), 1)
            low = y + _LINE_HEIGHT + _BAR * number
            filled = (_MARGIN, low, max(end, _MARGIN + 2), low + _BAR - 6)
            draw.rectangle(filled, fill=_bar_colour(colours, number))
            draw.text((end + 10, low + _BAR / 2 - 3), percent(share), colours.text, font, "lm")
    return picture


def draw_curve(losses: Sequence[float], steps: int, kept: Mapping[int, float]) -> Image.Image:
    """Draw the loss on a logarithmic scale, and as points the mean share that is kept (step -> share).

    The picture is RGBA without a background: the theme is no input of a training, which would run anew
    with every other theme.
    """
    width, height = _CURVE
    picture = Image.new("RGBA", _CURVE, _CLEAR)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    box = (10, 28, width - 10, height - 12)
    draw.rectangle(box, outline=_LINE)

    def across(step: int) -> float:
        return box[0] + (box[2] - box[0]) * step / max(1, steps)

    finite = [loss for loss in losses if math.isfinite(loss) and loss > 0]
    if finite:
        low, high = math.log(min(finite)), math.log(max(finite))
        span = max(high - low, 1e-6)
        points = [
            (across(step), box[3] - (box[3] - box[1]) * (math.log(loss) - low) / span)
            for step, loss in enumerate(losses, start=1)
            if math.isfinite(loss) and loss > 0
        ]
        if len(points) > 1:
            draw.line(points, fill=_COLOURS[0], width=2)
        draw.text((12, 8), f"loss {losses[-1]:.2g}", _COLOURS[0], font)
    for step, share in kept.items():
        x, y = across(step), box[3] - (box[3] - box[1]) * min(max(share, 0), 1)
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_COLOURS[1])
    if kept:
        draw.text((130, 8), f"kept {percent(list(kept.values())[-1])}", _COLOURS[1], font)
    draw.text((width - 110, 8), f"step {len(losses)} of {steps}", _INK, font)
    return picture


def percent(share: float) -> str:
    """Write a share as a whole percentage."""
    return f"{100 * share:.0f} %" if math.isfinite(share) else "none"


def _bar_colour(theme: Theme, number: int) -> str:
    """Linear comes first, and is what the others are compared with."""
    return theme.neutral if number == 0 else theme.series[(number - 1) % len(theme.series)]


def _short(text: str, width: float, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
