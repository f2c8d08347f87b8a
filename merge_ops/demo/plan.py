"""The plan of the demo: its LoRAs, prompts, merges and methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Prompt = tuple[int, str]  # digit, style

LORAS: dict[str, tuple[str, Prompt]] = {  # name: file, and a prompt that needs this LoRA
    "six": ("six.safetensors", (6, "plain")),
    "seven": ("seven", (7, "plain")),
    "eight": ("eight.safetensors", (8, "plain")),
    "neon": ("neon.safetensors", (0, "neon")),
    "slant": ("slant.safetensors", (0, "slant")),
    "outline": ("outline.safetensors", (1, "outline")),
}
KNOWN: Prompt = (0, "plain")  # the base model can draw this; a good merge keeps it


@dataclass(frozen=True, slots=True)
class Merge:
    """LoRAs to merge at weight 1, and prompts that need two of them together."""

    title: str
    loras: tuple[str, ...]
    together: tuple[Prompt, ...]

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts of this merge: what the base knows, each LoRA's skill, and combined skills."""
        return [KNOWN, *(LORAS[name][1] for name in self.loras), *self.together]


@dataclass(frozen=True, slots=True)
class Row:
    """One method: its name, a short description, and the keywords of ``merge_ops.merge``.

    A row that is ``learned`` (calibrated or distilled) needs a recording of the model with each LoRA.
    """

    title: str
    clause: str
    options: dict[str, Any] = field(default_factory=dict)
    learned: str = ""


MERGES = (
    Merge("Two LoRAs", ("six", "neon"), ()),
    Merge("Four LoRAs", ("six", "seven", "neon", "slant"), ((6, "slant"),)),
    Merge("All six LoRAs", tuple(LORAS), ((6, "slant"),)),
)

ROWS = (
    Row("linear", "adds all changes; the same as loading the LoRAs one after another"),
    Row("distilled", "learns to answer as each LoRA alone did, from drawings of one prompt a LoRA",
        learned="distilled"),
    Row("calibrated", "fits the layers to the same drawings in one pass, without training",
        learned="calibrated"),
    Row("average", "linear with every weight divided by the number of LoRAs", {"average": True}),
    Row("magnitude_prune", "drops the smaller half of each LoRA, then adds",
        {"method": "magnitude_prune", "density": 0.5}),
    Row("ties", "drops the smaller half, lets the LoRAs vote on each sign, averages those that agree",
        {"method": "ties", "density": 0.5}),
    Row("ties x 1.5", "ties times 1.5, to make up for the averaging",
        {"method": "ties", "density": 0.5, "scale": 1.5}),
    Row("dare_linear", "drops a random 30 % of each LoRA, rescales the rest, then adds",
        {"method": "dare_linear", "density": 0.7}),
    Row("dare_ties", "drops a random 30 %, then votes like ties",
        {"method": "dare_ties", "density": 0.7}),
    Row("svd, rank 4", "linear, truncated to rank 4", {"method": "linear", "rank": 4}),
    Row("PEFT linear", "adds the factors of the LoRAs instead of the true changes",
        {"combination_type": "linear"}),
    Row("PEFT ties", "TIES on the factors instead of the true changes",
        {"combination_type": "ties", "density": 0.5}),
)  # fmt: skip


def label(prompt: Prompt) -> str:
    """Return the words of a prompt: ``7``, ``slant 7``."""
    digit, style = prompt
    return str(digit) if style == "plain" else f"{style} {digit}"
