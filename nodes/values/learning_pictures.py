"""Pictures of learning: bars of what a merge keeps, and the curve of a training. Needs Pillow only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _LINE = (255, 255, 255), (32, 32, 32), (208, 208, 208)
_COLOURS = ((37, 99, 235), (217, 119, 6), (5, 150, 105), (190, 24, 93), (109, 40, 217), (75, 85, 99))
_WIDTH, _MARGIN = 960, 24
_BAR = 22
_CURVE = 480, 240


@dataclass(frozen=True, slots=True)
class Kept:
    """What one merge keeps: a share of each LoRA by name, 1 for all and below 0 for less than nothing."""

    title: str
    shares: Mapping[str, float]


def draw_bars(rows: Sequence[Kept]) -> Image.Image:
    """Draw a group of bars for each LoRA, one bar for each merge, from 0 to 100 %, as an RGB picture."""
    font = ImageFont.load_default(16)
    names = list(rows[0].shares)
    left = max(200, min(360, *(int(font.getlength(name)) + 2 * _MARGIN for name in names), 360))
    group = _BAR * len(rows) + 14
    height = 2 * _MARGIN + 26 * len(rows) + group * len(names)
    picture = Image.new("RGB", (_WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(rows):
        y = _MARGIN + 26 * number
        draw.rectangle((_MARGIN, y + 3, _MARGIN + 14, y + 17), fill=_colour(number))
        draw.text((_MARGIN + 22, y), _short(row.title, _WIDTH - 4 * _MARGIN, font), _INK, font)
    top = 2 * _MARGIN + 26 * len(rows) - 10
    right = _WIDTH - 90
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = left + (right - left) * share
        draw.line((x, top, x, height - _MARGIN), _LINE)
    for place, name in enumerate(names):
        y = top + group * place + 8
        draw.text((_MARGIN, y + 2), _short(name, left - _MARGIN - 8, font), _INK, font)
        for number, row in enumerate(rows):
            share = row.shares[name]
            end = left + (right - left) * min(max(share, 0), 1)
            low = y + _BAR * number
            draw.rectangle((left, low, max(end, left + 1), low + _BAR - 5), fill=_colour(number))
            draw.text((end + 6, low - 1), percent(share), _INK, font)
    return picture


def draw_curve(losses: Sequence[float], steps: int, kept: Mapping[int, float]) -> Image.Image:
    """Draw the loss on a logarithmic scale, and as points the mean share that is kept (step -> share)."""
    width, height = _CURVE
    picture = Image.new("RGB", _CURVE, _PAPER)
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


def _colour(number: int) -> tuple[int, int, int]:
    return _COLOURS[number % len(_COLOURS)]


def _short(text: str, width: float, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
