"""The demo: six LoRAs of a small diffusion model, merged by every method, drawn and judged."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["run"]


def run(
    out_dir: Path | str, count: int = 16, seed: int = 5, methods: Sequence[str] | None = None
) -> dict[str, Any]:
    """Merge, draw and judge; write the picture and the tables, and print the scores.

    Args:
        out_dir: folder for ``demo.png``, ``table.md`` and ``table.json``; made if it is missing.
        count: number of drawings behind each score.
        seed: seed of the noise that drawings start from, and of DARE's masks.
        methods: titles of the rows to draw; None for all.

    Returns:
        The content of ``table.json``.
    """
    from .measure import measure
    from .picture import draw_picture
    from .plan import ROWS
    from .table import figures, markdown, text

    start = time.perf_counter()
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    result = measure(count, seed, [row for row in ROWS if methods is None or row.title in methods])
    data = figures(result)
    files = [folder / name for name in ("demo.png", "table.md", "table.json")]
    draw_picture(result).save(files[0], optimize=True)
    files[1].write_text(markdown(result), encoding="utf-8")
    files[2].write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    print(text(result))
    print(f"\nScores: percent of {count} drawings that show the right digit in the right style; seed {seed}.")
    print(f"Done in {time.perf_counter() - start:.0f} s:")
    for file in files:
        print(f"  {file}")
    return data
