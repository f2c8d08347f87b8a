"""The text demo: three LoRAs on a real sentence encoder, merged by every method, scored on held-out texts."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["run"]


def run(out_dir: Path | str, seed: int = 5, methods: Sequence[str] | None = None) -> dict[str, Any]:
    """Merge and score; write the tables, and print the scores.

    Args:
        out_dir: folder for ``text.md`` and ``text.json``; made if it is missing.
        seed: seed of DARE's masks.
        methods: titles of the rows to compute; None for all.

    Returns:
        The content of ``text.json``.

    Raises:
        ParameterError: if the weights of the encoder are not installed.
    """
    from .measure import measure
    from .plan import ROWS
    from .table import figures, markdown, text

    start = time.perf_counter()
    result = measure(seed, [row for row in ROWS if methods is None or row.title in methods])
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    data = figures(result)
    files = [folder / name for name in ("text.md", "text.json")]
    files[0].write_text(markdown(result), encoding="utf-8")
    files[1].write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    print(text(result))
    print(f"\nDone in {time.perf_counter() - start:.0f} s:")
    for file in files:
        print(f"  {file}")
    return data
