"""Copy a full run's figures into docs/quality.md: ``python -m benchmarks.quality.docs [FOLDER]``.

``figures.json`` keeps the figures, so that a test can hold that the page says the same.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from .table import markdown

DOCS = Path(__file__).parents[2] / "docs"
PAGE, PICTURE = DOCS / "quality.md", DOCS / "quality.png"
FIGURES = Path(__file__).parent / "figures.json"
BEGIN, END = "<!-- quality: begin (python -m benchmarks.quality.docs) -->", "<!-- quality: end -->"


def with_figures(page: str, data: dict[str, Any]) -> str:
    """Return the page with the tables of a run between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    picture = f"![What each method keeps of the LoRAs alone, by their number]({PICTURE.name})"
    return f"{before}{BEGIN}\n\n{picture}\n\n{markdown(data)}\n{END}{after}"


def main() -> int:
    """Write the page, the figures and the picture."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "quality-output")
    data = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    if data["quick"] or not {"drawings", "text"} <= set(data):
        sys.stderr.write(f"{folder} is not a full run: run make quality first\n")
        return 1
    FIGURES.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8"), data), encoding="utf-8")
    shutil.copy(folder / "plot.png", PICTURE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
