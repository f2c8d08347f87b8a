"""The picture of a run: ratios with their goals, and the growth of time. Drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .rows import Row
from .scaling import Series

PAGE, TEXT, QUIET, GRID = "#fcfcfa", "#22252b", "#6f747d", "#e3e4e8"
COLOURS = {2: "#2f6db0", 4: "#79a9d8"}
LINES = ("#2f6db0", "#2b8a6e", "#c98a1b")
GOAL, MISSED = "#22252b", "#c2473d"
WIDTH, LEFT, RIGHT, TOP, BAR = 1240, 230, 110, 130, 17
PANEL_TOP, PANEL_HEIGHT = 90, 260


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw(
    rows: Sequence[Row], series: Sequence[Series], caption: str, path: Path, part: str = "722 layers"
) -> None:
    """Write the picture as a PNG; ``part`` states how much of the model was merged."""
    chosen = [row for row in rows if row.against == "PEFT" and row.ratio is not None]
    methods = list(dict.fromkeys(row.method for row in chosen))
    counts = sorted({row.n for row in chosen}) or [2]
    group = BAR * len(counts) + 16
    bars = len(methods) * group
    height = (TOP + bars + 60 if methods else 70) + (PANEL_TOP + PANEL_HEIGHT + 60 if series else 0) + 40
    page = Image.new("RGB", (WIDTH, height), PAGE)
    pen = ImageDraw.Draw(page)
    if methods:
        _bars(pen, chosen, methods, counts, group)
        about = f"SDXL base, {part}, rank 16, CPU seconds of one thread; logarithmic axis"
        pen.text((40, 64), about, QUIET, _font(15))
    if series:
        _panels(pen, series, height - PANEL_HEIGHT - 100)
    pen.text((40, height - 34), caption, QUIET, _font(13))
    page.save(path)


def _bars(
    pen: ImageDraw.ImageDraw, rows: list[Row], methods: list[str], counts: list[int], group: int
) -> None:
    highest = max(max(row.ratio or 1, row.goal or 1) for row in rows)
    decades = max(1.0, math.log10(highest * 1.15))
    lowest = min(0.0, *(math.log10((row.ratio or 1) * 0.9) for row in rows))
    length = WIDTH - LEFT - RIGHT
    bottom = TOP + len(methods) * group

    def place(ratio: float) -> float:
        return LEFT + length * (math.log10(ratio) - lowest) / (decades - lowest)

    pen.text((40, 28), "Times faster than PEFT", TEXT, _font(26))
    _bar_legend(pen, counts)
    for tick in [m * 10**e for e in range(math.floor(lowest), math.ceil(decades) + 1) for m in (1, 3)]:
        if lowest <= math.log10(tick) <= decades:
            pen.line((place(tick), TOP - 6, place(tick), bottom), GRID)
            pen.text((place(tick), bottom + 6), f"{tick:g}x", QUIET, _font(14), anchor="ma")
    for index, method in enumerate(methods):
        y = TOP + index * group
        middle = y + BAR * len(counts) / 2
        pen.text((LEFT - 14, middle), method, TEXT, _font(16), anchor="rm")
        for row in (row for row in rows if row.method == method):
            _bar(pen, row, y + counts.index(row.n) * BAR, place, 10**lowest)


def _bar(pen: ImageDraw.ImageDraw, row: Row, y: float, place: object, start: float) -> None:
    assert callable(place) and row.ratio is not None
    end = place(row.ratio)
    pen.rectangle((place(start), y + 1, end, y + BAR - 2), COLOURS.get(row.n, QUIET))
    label_at = end
    if row.goal:
        mark = place(row.goal)
        pen.line((mark, y - 1, mark, y + BAR), GOAL, 3)
        # a goal just past the end of the bar would overlap the number
        label_at = mark if end - 4 <= mark <= end + 52 else end
    colour = MISSED if row.met is False else TEXT
    text = f"{row.ratio:.0f}x" if row.ratio >= 20 else f"{row.ratio:.1f}x"
    pen.text((label_at + 8, y + BAR / 2), text, colour, _font(14), anchor="lm")


def _bar_legend(pen: ImageDraw.ImageDraw, counts: list[int]) -> None:
    x = 40
    for count in counts:
        pen.rectangle((x, 94, x + 16, 108), COLOURS.get(count, QUIET))
        pen.text((x + 24, 101), f"{count} LoRAs", TEXT, _font(15), anchor="lm")
        x += 120
    pen.line((x + 4, 93, x + 4, 109), GOAL, 3)
    pen.text((x + 16, 101), "goal", TEXT, _font(15), anchor="lm")
    pen.text((x + 76, 101), "below the goal", MISSED, _font(15), anchor="lm")


def _panels(pen: ImageDraw.ImageDraw, series: Sequence[Series], top: float) -> None:
    pen.text((40, top - 84), "How time grows", TEXT, _font(26))
    pen.text(
        (40, top - 50),
        "CPU seconds, both axes logarithmic; in brackets the slope, where 1 is linear",
        QUIET,
        _font(15),
    )
    axes = list(dict.fromkeys(s.axis for s in series))
    gap, left = 80, 96
    width = (WIDTH - left - 40 - gap * (len(axes) - 1)) / len(axes)
    for index, axis in enumerate(axes):
        x = left + index * (width + gap)
        _panel(pen, [s for s in series if s.axis == axis], (x, top, x + width, top + PANEL_HEIGHT))


def _panel(pen: ImageDraw.ImageDraw, series: list[Series], box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = box
    xs = sorted({x for s in series for x, _ in s.points})
    ys = [y for s in series for _, y in s.points]
    low, high = math.log10(min(ys)) - 0.15, math.log10(max(ys)) + 0.9  # room for the legend

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / xs[0]) / math.log(xs[-1] / xs[0])
        return left + 14 + (right - left - 28) * across, bottom - (bottom - top) * (math.log10(y) - low) / (
            high - low
        )

    for exponent in range(math.ceil(low), math.floor(high) + 1):
        y = place(xs[0], 10**exponent)[1]
        pen.line((left, y, right, y), GRID)
        pen.text((left - 6, y), f"{10.0**exponent:g} s", QUIET, _font(13), anchor="rm")
    for x in xs:
        pen.text((place(x, 10**low)[0], bottom + 5), str(x), QUIET, _font(13), anchor="ma")
    pen.rectangle(box, outline=QUIET)
    pen.text(((left + right) / 2, bottom + 24), series[0].axis, TEXT, _font(15), anchor="ma")
    for index, line in enumerate(series):
        colour = LINES[index % len(LINES)]
        points = [place(*point) for point in line.points]
        pen.line(points, colour, 3)
        for x, y in points:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), colour)
        pen.text((left + 12, top + 8 + 19 * index), f"{line.method} ({line.slope:.2f})", colour, _font(14))
