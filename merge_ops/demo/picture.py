"""Drawing the picture: each LoRA alone, and below it one row per method."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .measure import Cell, Cells, Result
from .plan import KNOWN, LORAS, MERGES, Merge, label

TILE, GAP, GROUP_GAP, LEFT, MARGIN = 80, 9, 30, 350, 40
MEAN = 60  # width of the column with a group's mean
ROW = TILE + 34
PAGE, TEXT, QUIET, LINE = "#fcfcfa", "#22252b", "#6f747d", "#d9dbe0"
SUBTITLE = (
    "A small diffusion model can draw the digits 0 to 4. Each of six LoRAs teaches it one more skill: a new "
    "digit or a new style. Do all of them survive in a merge?"
)
GOOD, FAIR, POOR = "#2b8a6e", "#c98a1b", "#c2473d"


def width() -> int:
    """Return the width of the whole picture in pixels."""
    return group_left(len(MERGES)) - GROUP_GAP + MARGIN


def group_left(index: int) -> int:
    """Return the x position of a merge's columns in pixels."""
    x = MARGIN + LEFT
    for group in MERGES[:index]:
        x += len(group.prompts) * (TILE + GAP) + MEAN + GROUP_GAP
    return x


def draw_picture(result: Result) -> Image.Image:
    """Draw the whole page."""
    top = 132
    grid = top + 2 * ROW + 150
    page = Image.new("RGB", (width(), grid + len(result.rows) * ROW + 96), PAGE)
    pen = ImageDraw.Draw(page)
    _text(pen, (MARGIN, 30), "Merging LoRAs: what survives?", 34)
    _text(pen, (MARGIN, 76), SUBTITLE, 20, QUIET)
    _strip(page, pen, top, result)
    _legend(pen, top, result)
    _headings(pen, grid)
    for index, row in enumerate(result.rows):
        y = grid + index * ROW
        pen.line((MARGIN, y - 10, width() - MARGIN, y - 10), LINE)
        _text(pen, (MARGIN, y + 4), row.title, 23)
        _wrapped(pen, (MARGIN, y + 34), row.clause, LEFT - 24, 16)
        for number, group in enumerate(MERGES):
            _group(page, pen, (group_left(number), y), group, result.merged[row.title, group.title])
    _text(pen, (MARGIN, page.height - 62), _caption(result), 16, QUIET)
    return page


def _strip(page: Image.Image, pen: ImageDraw.ImageDraw, y: int, result: Result) -> None:
    """Draw two rows: the base model given the prompt of each skill, and the LoRA that teaches it."""
    _text(pen, (MARGIN, y + 30 + 8), "base model", 23)
    _wrapped(pen, (MARGIN, y + 66), "no LoRA; it has never seen a 6, 7, 8 or these styles", LEFT - 24, 16)
    _text(pen, (MARGIN, y + 30 + ROW + 8), "each LoRA alone", 23)
    _wrapped(pen, (MARGIN, y + ROW + 66), "the skill that a merge should keep", LEFT - 24, 16)
    step = 2 * TILE + GAP + 18
    x = MARGIN + LEFT
    _centred(pen, (x + TILE // 2, y), "prompt", 15, QUIET)
    _centred(pen, (x + TILE // 2, y + 16), label(KNOWN), 17)
    _cell(page, pen, (x, y + 40), result.base[KNOWN])
    x += TILE + 28
    for name, (_, prompt) in LORAS.items():
        centre = x + TILE + GAP // 4
        _centred(pen, (centre, y), f"LoRA \u201c{name}\u201d, rank {result.ranks[name]}", 15, QUIET)
        _centred(pen, (centre, y + 16), label(prompt), 17)
        for number, cells in enumerate((result.base, result.alone[name])):
            for image in range(2):
                place = (x + image * (TILE + 4), y + 40 + number * ROW)
                _cell(page, pen, place, cells[prompt], image, bar=image == 0)
        x += step


def _legend(pen: ImageDraw.ImageDraw, y: int, result: Result) -> None:
    x = MARGIN + LEFT + TILE + 28 + len(LORAS) * (2 * TILE + GAP + 18) + 14
    lines = (
        f"The number under a tile: percent of {result.count} drawings that show",
        "the right digit in the right style, according to a judge:",
        "a small network trained on real handwritten digits,",
        "not on these drawings.",
    )
    for index, line in enumerate(lines):
        _text(pen, (x, y + 44 + 23 * index), line, 16, QUIET)
    for index, (colour, words) in enumerate(((GOOD, "80 or more"), (FAIR, "40 to 79"), (POOR, "less"))):
        pen.rectangle((x, y + 155 + 24 * index, x + 26, y + 161 + 24 * index), fill=colour)
        _text(pen, (x + 36, y + 148 + 24 * index), words, 16, QUIET)


def _headings(pen: ImageDraw.ImageDraw, y: int) -> None:
    for number, group in enumerate(MERGES):
        x = group_left(number)
        right = x + len(group.prompts) * (TILE + GAP) - GAP
        names = " + ".join(group.loras) if len(group.loras) < len(LORAS) else "ranks 3, 4 and 8"
        _text(pen, (x, y - 84), group.title, 23)
        indent = pen.textlength(group.title, font=ImageFont.load_default(size=23)) + 14
        _text(pen, (x + round(indent), y - 78), names, 16, QUIET)
        pen.line((x, y - 52, right, y - 52), QUIET)
        for index, prompt in enumerate(group.prompts):
            _centred(pen, (x + index * (TILE + GAP) + TILE // 2, y - 44), label(prompt), 17)
        _centred(pen, (right + GAP + MEAN // 2, y - 44), "mean", 16, QUIET)
    _text(pen, (MARGIN, y - 84), "merged by", 23)


def _group(
    page: Image.Image, pen: ImageDraw.ImageDraw, place: tuple[int, int], group: Merge, cells: Cells | None
) -> None:
    x, y = place
    if cells is None:
        _text(pen, (x, y + 34), "refused: needs LoRAs of equal rank; these have 3, 4 and 8", 16, QUIET)
        return
    for index, prompt in enumerate(group.prompts):
        _cell(page, pen, (x + index * (TILE + GAP), y), cells[prompt])
    mean = sum(cells[prompt].right for prompt in group.prompts) / len(group.prompts)
    centre = x + len(group.prompts) * (TILE + GAP) + MEAN // 2
    _centred(pen, (centre, y + 30), f"{100 * mean:.0f}", 22, _colour(mean))


def _cell(
    page: Image.Image, pen: ImageDraw.ImageDraw, place: tuple[int, int], cell: Cell, image: int = 0,
    bar: bool = True,
) -> None:  # fmt: skip
    """Draw one tile, and under it the fraction of right drawings as a bar and a number."""
    x, y = place
    page.paste(_tile(cell.images[image]), (x, y))
    if bar:
        full = TILE - 36
        pen.rectangle((x, y + TILE + 6, x + full, y + TILE + 10), fill=LINE)
        if cell.right > 0:
            pen.rectangle(
                (x, y + TILE + 6, x + round(full * cell.right), y + TILE + 10), fill=_colour(cell.right)
            )
        _text(pen, (x + full + 5, y + TILE), f"{100 * cell.right:.0f}", 15, _colour(cell.right))


def _tile(image: Tensor) -> Image.Image:
    pixels = (image.permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)
    return Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BICUBIC)


def _colour(right: float) -> str:
    return GOOD if right >= 0.795 else FAIR if right >= 0.395 else POOR


def _caption(result: Result) -> str:
    return (
        "Everything was computed in this run, from the model and the LoRAs (trained with PEFT) that ship "
        f"with the project; seed {result.seed}. Each tile is the first drawing for its prompt.\n"
        "This is a toy: it shows how the methods work, but does not rank them for large models."
    )


def _text(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], words: str, size: int, colour: str = TEXT
) -> None:  # fmt: skip
    pen.text(place, words, fill=colour, font=ImageFont.load_default(size=size))


def _centred(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], words: str, size: int, colour: str = TEXT
) -> None:  # fmt: skip
    font = ImageFont.load_default(size=size)
    pen.text((place[0] - pen.textlength(words, font=font) / 2, place[1]), words, fill=colour, font=font)


def _wrapped(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], words: str, room: int, size: int
) -> None:  # fmt: skip
    font = ImageFont.load_default(size=size)
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font=font) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    pen.multiline_text(place, "\n".join(lines), fill=QUIET, font=font, spacing=5)
