"""A page that is drawn from top to bottom, and its text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WIDTH, MARGIN = 960, 36  # a node shows it at about half the size, so the smallest text is twice what it needs
LEFT, RIGHT = MARGIN + 84, WIDTH - MARGIN  # of the plot area; the labels of the axis are to its left
HEADING, FIGURE, TITLE, SMALL = 34, 28, 26, 22  # sizes of text


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours of a picture. Those of ``series`` can be told apart by colour-blind readers."""

    paper: str
    band: str
    line: str
    quiet: str  # small text
    text: str
    positive: str
    negative: str
    neutral: str
    series: tuple[str, ...]


THEMES = {
    "light": Theme(
        "#fbfbf9", "#f1f2ef", "#d3d6d9", "#5c626b", "#20242a", "#3b78b5", "#d3622a", "#9aa3ad",
        ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"),  # Okabe and Ito
    ),
    "dark": Theme(
        "#202124", "#292b2f", "#45484d", "#aab0b8", "#eceef0", "#5fa4e6", "#ee8a52", "#868d96",
        ("#4ba3e3", "#f0b43c", "#2fbd8d", "#e49ac6", "#9bd6f7", "#f08048"),
    ),
}  # fmt: skip
_TALL = 1 << 12


class Page:
    """Draws from top to bottom; ``y`` is the position of the next item, in pixels."""

    def __init__(self, theme: Theme) -> None:
        self.theme = theme
        self.image = Image.new("RGB", (WIDTH, _TALL), theme.paper)
        self.pen = ImageDraw.Draw(self.image)
        self.y = 26

    def text(
        self, x: float, y: float, words: str, size: int, colour: str | None = None, anchor: str = "la"
    ) -> None:
        """Draw one line; ``anchor`` is Pillow's: left, middle or right, then ascender, middle or baseline."""
        self.pen.text((x, y), words, fill=colour or self.theme.text, font=_font(size), anchor=anchor)

    def lines(self, words: str, size: int, colour: str | None = None) -> None:
        """Draw a paragraph, wrapped."""
        for line in wrapped(words, RIGHT - MARGIN, size):
            self.text(MARGIN, self.y, line, size, colour)
            self.y += round(size * 1.35)

    def note(self, words: str) -> None:
        """Draw a paragraph of small text."""
        self.lines(words, SMALL, self.theme.quiet)

    def dashed(self, y: float) -> None:
        """Draw a dashed line across the plot."""
        for x in range(LEFT, RIGHT, 14):
            self.pen.line((x, y, min(x + 7, RIGHT), y), self.theme.quiet, 2)

    def finished(self) -> Image.Image:
        """Return the page, cropped where its content ends."""
        return self.image.crop((0, 0, WIDTH, min(self.y + 20, _TALL)))


def width_of(words: str, size: int) -> float:
    """Return the width of one line in pixels."""
    return float(_font(size).getlength(words))


def shortened(words: str, room: float, size: int) -> str:
    """Return ``words``, with the middle left out if they are wider than ``room`` pixels."""
    if width_of(words, size) <= room:
        return words
    kept = len(words)
    while kept > 2 and width_of(_without_middle(words, kept), size) > room:
        kept -= 1
    return _without_middle(words, kept)


def wrapped(words: str, room: float, size: int) -> list[str]:
    """Wrap words into lines that are at most ``room`` pixels wide."""
    lines = [""]
    for word in words.split():
        fitting = shortened(word, room, size)
        longer = f"{lines[-1]} {fitting}".strip()
        if width_of(longer, size) > room:
            lines.append(fitting)
        else:
            lines[-1] = longer
    return lines


def nice_top(value: float, steps: Sequence[float] = (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10)) -> float:
    """Return the first round number that is not below ``value``."""
    if value <= 0:
        return 1.0
    power = 10.0 ** (len(f"{int(value)}") - 1) if value >= 1 else 1.0
    while power > value:
        power /= 10
    return next(step * power for step in steps if step * power >= value * (1 - 1e-9))


def scale_of(low: float, high: float, top: float, bottom: float) -> Callable[[float], float]:
    """Return a function that maps values to positions on the page."""
    return lambda value: bottom + (top - bottom) * (min(max(value, low), high) - low) / (high - low)


def _without_middle(words: str, kept: int) -> str:
    head = (kept + 1) // 2
    return f"{words[:head]}…{words[len(words) - (kept - head) :]}"


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)  # type: ignore[return-value]  # Pillow draws its bitmap font only if no size is given
