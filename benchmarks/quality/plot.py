"""The picture of a run: what each row keeps of the LoRAs alone, by their number. Drawn with Pillow alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..table import machine_line
from .table import group_title, groups_of

PAGE, TEXT, QUIET, GRID = "#fcfcfa", "#22252b", "#6f747d", "#e3e4e8"
LEARNED, BASE, METHOD = "#2b8a6e", "#22252b", "#8fb3d9"
LEFT, TOP, LINE, PANEL, GAP, RIGHT, BOTTOM = 300, 132, 30, 150, 26, 40, 60

Data = dict[str, Any]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw(data: Data, path: Path) -> None:
    """Write the picture as a PNG: one line for each row, one panel for each number of LoRAs."""
    drawings = data["drawings"]
    groups, rows = groups_of(drawings), drawings["rows"]
    width = LEFT + len(groups) * (PANEL + GAP) + RIGHT
    page = Image.new("RGB", (width, TOP + len(rows) * LINE + BOTTOM), PAGE)
    pen = ImageDraw.Draw(page)
    pen.text((40, 26), "What merges keep of their LoRAs", TEXT, _font(26))
    about = (
        "own skills as a share of the same LoRAs alone (1 is all); mark: the worst LoRA; "
        "line: standard error of the difference to linear"
    )
    pen.text((40, 62), about, QUIET, _font(15))
    for number, group in enumerate(groups):
        _panel(pen, LEFT + number * (PANEL + GAP), group, rows)
    for index, title in enumerate(rows):
        pen.text((LEFT - 14, _middle(index)), title, TEXT, _font(16), anchor="rm")
    pen.text((40, page.height - 30), machine_line(data["machine"]), QUIET, _font(13))
    page.save(path, optimize=True)


def _middle(index: int) -> float:
    return TOP + index * LINE + LINE / 2


def _place(left: float, share: float) -> float:
    return left + PANEL * max(0.0, min(1.1, share)) / 1.1


def _panel(pen: ImageDraw.ImageDraw, left: float, group: str, rows: Data) -> None:
    bottom = TOP + len(rows) * LINE
    pen.text((left, TOP - 34), group_title(group), TEXT, _font(17))
    for tick in (0.0, 0.5, 1.0):
        x = _place(left, tick)
        pen.line((x, TOP - 6, x, bottom), GRID)
        pen.text((x, bottom + 4), f"{tick:g}", QUIET, _font(13), anchor="ma")
    for index, (title, row) in enumerate(rows.items()):
        found = row["groups"].get(group)
        if found is None:
            continue
        middle, end = _middle(index), _place(left, found["own"]["mean"])
        pen.rectangle((left, middle - 8, end, middle + 8), _colour(title))
        worst = _place(left, found["worst"]["mean"])
        pen.line((worst, middle - 10, worst, middle + 10), PAGE if worst < end - 1 else TEXT, 3)
        error = found["own"]["error"]
        if error:
            low, high = (_place(left, found["own"]["mean"] + sign * error) for sign in (-1, 1))
            pen.line((low, middle, high, middle), TEXT, 1)
    x = _place(left, rows["linear"]["groups"][group]["own"]["mean"]) if "linear" in rows else left
    pen.line((x, TOP - 6, x, bottom), BASE, 1)


def _colour(title: str) -> str:
    if title == "linear":
        return BASE
    return LEARNED if title.startswith(("calibrated", "distilled")) else METHOD
