"""One LoRA of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..blocks import BlockStrengths
from ..errors import ParameterError
from . import checked


@dataclass(frozen=True, slots=True)
class Source:
    """One LoRA of a recipe: its name without a folder, the SHA-256 of its file, and its weights.

    ``blocks`` is the text of its block strengths, as ``BlockStrengths`` writes it. ``adapter`` was chosen
    among several that the keys of the file name. ``apart`` is true for one that was added after the merge of
    the others.
    """

    name: str
    sha256: str | None = None
    weight: float = 1.0
    text_weight: float | None = None  # None: the same as weight
    blocks: str | None = None
    adapter: str | None = None
    apart: bool = False

    def __post_init__(self) -> None:
        name = checked.plain_name(self.name, "the name of a source")
        sha256 = None if self.sha256 is None else checked.text(self.sha256, f"sha256 of {name}").lower()
        if sha256 is not None and (len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef")):
            raise ParameterError(
                f"sha256 of {name} must be 64 hexadecimal digits, not {checked.shown(sha256)}"
            )
        text_weight = self.text_weight
        if text_weight is not None:
            text_weight = checked.number(text_weight, f"text_weight of {name}")
        weight = checked.number(self.weight, f"weight of {name}")
        if self.blocks is not None:
            text = checked.text(self.blocks, f"blocks of {name}")
            object.__setattr__(self, "blocks", str(BlockStrengths.parse(text)))
        if not isinstance(self.apart, bool):
            raise ParameterError(f"apart of {name} must be true or false, not {checked.shown(self.apart)}")
        if self.adapter is not None:
            checked.text(self.adapter, f"adapter of {name}")
        object.__setattr__(self, "sha256", sha256)
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "text_weight", None if text_weight == weight else text_weight)

    def to_dict(self) -> dict[str, Any]:
        """Return the source as plain values, without what is not set."""
        own = {"name": self.name, "sha256": self.sha256, "weight": self.weight}
        more = {"text_weight": self.text_weight, "blocks": self.blocks, "adapter": self.adapter}
        more |= {"apart": self.apart or None}
        return own | {key: value for key, value in more.items() if value is not None}
