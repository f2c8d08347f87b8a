"""Drawing curves of the energy that each rank keeps."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..spectrum import LoraSpectrum
from .page import LEFT, RIGHT, SMALL, Page, scale_of

_LINES = (0.0, 0.5, 0.9, 0.99)
_FINE = 3  # curves are drawn at this multiple of their size, for smooth edges


def draw_curves(page: Page, spectra: Sequence[LoraSpectrum], last: int, height: int = 250) -> None:
    """Draw one curve per LoRA from rank 0 to ``last``, with lines at 50, 90 and 99 %."""
    top, bottom = page.y + 18, page.y + 18 + height
    theme, series = page.theme, page.theme.series
    up, along = scale_of(0, 1, top, bottom), scale_of(0, last, RIGHT, LEFT)
    size = (RIGHT - LEFT + 8, height + 8)
    panel = Image.new("RGB", (size[0] * _FINE, size[1] * _FINE), theme.paper)
    pen = ImageDraw.Draw(panel)

    def at(rank: float, share: float) -> tuple[float, float]:
        return (along(rank) - LEFT + 4) * _FINE, (up(share) - top + 4) * _FINE

    for share in _LINES:
        pen.line((*at(0, share), *at(last, share)), theme.line, _FINE)
    for number, spectrum in reversed(list(enumerate(spectra))):
        kept = [0.0, *spectrum.whole.kept[:last].tolist()]
        kept += [1.0] * (last + 1 - len(kept))
        points = [at(rank, share) for rank, share in enumerate(kept)]
        pen.line(points, series[number % len(series)], 4 * _FINE, joint="curve")
        if last <= 40:
            for x, y in points:
                pen.ellipse((x - 13, y - 13, x + 13, y + 13), fill=series[number % len(series)])
    page.image.paste(panel.resize(size, Image.Resampling.LANCZOS), (LEFT - 4, top - 4))
    for share in _LINES:
        page.text(LEFT - 10, up(share), f"{100 * share:g} %", SMALL, theme.quiet, "rm")
    for rank in _ticks(last):
        page.text(along(rank), bottom + 8, str(rank), SMALL, theme.quiet, "ma")
    page.text((LEFT + RIGHT) / 2, bottom + 36, "rank of each layer", SMALL, theme.quiet, "ma")
    page.y = bottom + 74


def _ticks(last: int) -> range:
    return range(
        0, last + 1, next((step for step in (1, 2, 4, 8, 16, 32, 64, 128) if last / step <= 12), 256)
    )
