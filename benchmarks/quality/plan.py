"""The plan of the benchmark: LoRAs, trainings, prompts and the sets that are merged.

A prompt is a digit and a style. The base model draws the digits 0 to 4, plain and in colours; each LoRA
teaches one more digit, or one style on those five digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from merge_ops.demo.plan import Prompt

ASSETS = Path(__file__).parent / "assets"
TRAININGS = ("A", "B", "C")
CHOSEN_ON, SCORED_ON = ("A",), ("B", "C")

DIGITS = {"five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
STYLE_SUBJECTS = {"neon": 0, "slant": 0, "outline": 1}  # the digit of a style's own prompt
OWN: dict[str, Prompt] = {name: (digit, "plain") for name, digit in DIGITS.items()}
OWN |= {style: (digit, style) for style, digit in STYLE_SUBJECTS.items()}
KNOWN_DIGITS = range(5)  # what the base can draw
KEPT: tuple[Prompt, ...] = ((2, "plain"), (3, "plain"), (4, "plain"))  # no recording shows these
MOST_PAIRS = 6  # combinations that are scored in one set


@dataclass(frozen=True, slots=True)
class LoraSet:
    """LoRAs that are merged at strength 1. Twins are two trainings of one subject."""

    names: tuple[str, ...]
    twins: bool = False

    @property
    def title(self) -> str:
        """``six+neon``; ``six+six`` for twins."""
        return "+".join(self.names)

    @property
    def group(self) -> str:
        """What the set is averaged with: its number of LoRAs, or ``twins``."""
        return "twins" if self.twins else str(len(self.names))

    def own(self) -> list[Prompt]:
        """The prompt of each LoRA."""
        return [OWN[name] for name in self.names]

    def others(self) -> list[Prompt]:
        """Other subjects in each style: digits that it was trained on, without that of its own prompt."""
        styles = [name for name in dict.fromkeys(self.names) if name in STYLE_SUBJECTS]
        return [(digit, style) for style in styles for digit in KNOWN_DIGITS if digit != OWN[style][0]]

    def pairs(self) -> list[Prompt]:
        """Combinations of a learned digit and a learned style; each LoRA has a turn before any has two."""
        digits = [DIGITS[name] for name in self.names if name in DIGITS]
        styles = [name for name in self.names if name in STYLE_SUBJECTS]
        if self.twins or not digits or not styles:
            return []
        turns = [
            (digits[i], styles[(i + shift) % len(styles)])
            for shift in range(len(styles))
            for i in range(len(digits))
        ]
        return turns[:MOST_PAIRS]


SETS = (
    LoraSet(("six", "neon")),
    LoraSet(("eight", "slant")),
    LoraSet(("nine", "outline")),
    LoraSet(("five", "seven")),
    LoraSet(("six", "seven", "neon")),
    LoraSet(("nine", "slant", "outline")),
    LoraSet(("five", "eight", "neon")),
    LoraSet(("six", "seven", "neon", "slant")),
    LoraSet(("five", "nine", "slant", "outline")),
    LoraSet(("six", "eight", "nine", "neon")),
    LoraSet(("six", "seven", "eight", "neon", "slant", "outline")),
    LoraSet(("five", "seven", "nine", "neon", "slant", "outline")),
    LoraSet(("five", "six", "eight", "nine", "neon", "slant")),
    LoraSet(tuple(OWN)),
    LoraSet(("six", "six"), twins=True),
    LoraSet(("neon", "neon"), twins=True),
)
QUICK_SETS = tuple(s for s in SETS if s.title in (
    "six+neon", "nine+slant+outline", "six+seven+neon+slant", "six+seven+eight+neon+slant+outline", "six+six",
))  # fmt: skip
GROUPS = tuple(dict.fromkeys(s.group for s in SETS))


def file_of(training: str, name: str) -> Path:
    """The file of one training of one LoRA."""
    return ASSETS / training / f"{name}.safetensors"


def sources(lora_set: LoraSet, training: str) -> list[tuple[str, str]]:
    """Training and name of each LoRA in a set; the second of twins comes from the next training."""
    following = TRAININGS[(TRAININGS.index(training) + 1) % len(TRAININGS)]
    return [
        (following if lora_set.twins and number else training, name)
        for number, name in enumerate(lora_set.names)
    ]
