"""The plan of the text demo: its LoRAs and methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .tasks import ASSETS, TASKS

LORAS = {name: ASSETS / "loras" / name for name in TASKS}


@dataclass(frozen=True, slots=True)
class Row:
    """One merge: its name, a short description, and the keywords of ``merge_ops.merge``.

    A row with ``combination_type`` is computed by stock PEFT if it is installed. A row that is ``learned``
    (calibrated or distilled) needs a recording of the encoder with each LoRA.
    """

    title: str
    clause: str
    options: dict[str, Any] = field(default_factory=dict)
    learned: str = ""

    @property
    def is_peft(self) -> bool:
        """True if PEFT can compute the row."""
        return "combination_type" in self.options


_HALF = {"density": 0.5}
_MOST = {"density": 0.7}

ROWS = (
    Row("linear", "adds all changes"),
    Row("distilled", "learns to answer 64 texts a task as its LoRA alone did", learned="distilled"),
    Row("distilled, rank 8", "the same, trained at rank 8", {"rank": 8}, learned="distilled"),
    Row("calibrated", "fits the layers to the same texts in one pass", learned="calibrated"),
    Row("average", "linear with every weight divided by three", {"average": True}),
    Row(
        "magnitude_prune", "drops the smaller half of each, then adds", {"method": "magnitude_prune", **_HALF}
    ),
    Row("ties", "drops the smaller half, votes on each sign, averages", {"method": "ties", **_HALF}),
    Row("ties x 1.5", "ties times 1.5", {"method": "ties", **_HALF, "scale": 1.5}),
    Row("dare_linear", "drops a random 30 %, rescales, adds", {"method": "dare_linear", **_MOST}),
    Row("dare_ties", "drops a random 30 %, then votes like ties", {"method": "dare_ties", **_MOST}),
    Row("linear, rank 8", "linear, truncated to rank 8", {"method": "linear", "rank": 8}),
    Row("PEFT linear", "adds the factors instead of the changes", {"combination_type": "linear"}),
    Row("PEFT magnitude_prune", "prunes the factors", {"combination_type": "magnitude_prune", **_HALF}),
    Row("PEFT ties", "TIES on the factors", {"combination_type": "ties", **_HALF}),
    Row("PEFT dare_ties", "DARE and TIES on the factors", {"combination_type": "dare_ties", **_MOST}),
    Row("PEFT svd", "linear on the true changes, truncated to rank 8", {"combination_type": "svd"}),
    Row(
        "PEFT ties_svd",
        "TIES on the true changes, truncated to rank 8",
        {"combination_type": "ties_svd", **_HALF},
    ),
)
