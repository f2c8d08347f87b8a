"""Drawing a grid of pictures with headings. Needs Pillow only."""

from __future__ import annotations

import re

from PIL import Image, ImageDraw, ImageFont

from .grid_table import Table

_GAP = 10
_LINES = 3  # at most in a heading
_NARROWEST = 128  # width of a column that still has room for a word
_PAPER, _INK = (255, 255, 255), (32, 32, 32)

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def draw_grid(pictures: list[Image.Image], table: Table) -> Image.Image:
    """Draw one RGB picture: each picture in the middle of its cell, headings to the left and above the grid,
    captions above their pictures.
    """
    with_text = bool(table.left or table.top or table.captions)
    width = max([picture.width for picture in pictures] + [_NARROWEST] * with_text)
    height = max(picture.height for picture in pictures)
    font = ImageFont.load_default(min(max(width // 16, 15), 40))
    captions, top = (
        [wrap_text(t, width, font) for t in table.captions],
        [wrap_text(t, width, font) for t in table.top],
    )
    left = [wrap_text(text, max(width // 2, _NARROWEST), font) for text in table.left]
    margin_left = max((_size(text, font)[0] for text in left), default=-_GAP) + 2 * _GAP
    margin_top = max((_size(text, font)[1] for text in top), default=-_GAP) + 2 * _GAP
    above = max((_size(text, font)[1] + _GAP // 2 for text in captions), default=0)
    step_x, step_y = width + _GAP, above + max(height, *(_size(t, font)[1] for t in left), 1) + _GAP
    size = margin_left + step_x * len(table.rows[0]), margin_top + step_y * len(table.rows)
    grid = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(grid)
    for column, text in enumerate(top):
        middle = margin_left + column * step_x + width // 2
        _write(draw, (middle, margin_top - _GAP // 2), text, font, "md", "center")
    for row, text in enumerate(left):
        middle = margin_top + row * step_y + (step_y - _GAP) // 2
        _write(draw, (margin_left - _GAP, middle), text, font, "rm", "right")
    for row, numbers in enumerate(table.rows):
        for column, number in enumerate(numbers):
            if number is None:
                continue
            x, y = margin_left + column * step_x, margin_top + row * step_y + above
            if captions:
                _write(draw, (x + width // 2, y - _GAP // 2), captions[number], font, "md", "center")
            picture = pictures[number]
            inside = step_y - _GAP - above
            grid.paste(picture, (x + (width - picture.width) // 2, y + (inside - picture.height) // 2))
    return grid


def wrap_text(text: str, width: int, font: Font) -> str:
    """Break a text into at most three lines; a longer one loses its middle, since the value is at its end."""
    lines, half = _lines(text, width, font), len(text) // 2
    while len(lines) > _LINES:
        half -= 1
        lines = _lines(f"{text[:half]}...{text[-half:]}", width, font)
    return "\n".join(lines)


def join_side_by_side(frames: list[Image.Image]) -> Image.Image:
    """Join the pictures of a batch into one."""
    if len(frames) == 1:
        return frames[0]
    width = sum(frame.width for frame in frames) + 2 * (len(frames) - 1)
    joined = Image.new("RGB", (width, max(frame.height for frame in frames)), _PAPER)
    x = 0
    for frame in frames:
        joined.paste(frame, (x, 0))
        x += frame.width + 2
    return joined


def _lines(text: str, width: int, font: Font) -> list[str]:
    """Break after spaces and signs where possible, and inside a word that is too long for a line."""
    lines = [""]
    for word in re.findall(r"[^\s,=_/\\-]*[\s,=_/\\-]+|[^\s,=_/\\-]+", text):
        if font.getlength((lines[-1] + word).rstrip()) <= width:
            lines[-1] += word
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength((lines[-1] + letter).rstrip()) > width:
                lines.append("")
            lines[-1] += letter
    return [line.rstrip() for line in lines]


def _size(text: str, font: Font) -> tuple[int, int]:
    box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font)
    return int(box[2]) + 1, int(box[3]) + 1


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, font: Font, anchor: str, align: str
) -> None:
    draw.multiline_text(place, text, _INK, font, anchor, align=align)
