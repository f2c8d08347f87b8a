"""The three tasks, their labels, and the descriptions of the labels for the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True, slots=True)
class Task:
    """One task: a text gets the label whose description is nearest to it.

    The base model embeds the descriptions once; they are the frozen head of the task.
    """

    name: str
    asks: str
    labels: dict[str, str]  # label -> description
    folder: Path = ASSETS  # where its texts are

    def texts(self, split: str) -> tuple[list[str], list[int]]:
        """Return the texts of a split (train, dev or test) and the numbers of their labels."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        lines = (self.folder / f"{self.name}.tsv").read_text(encoding="utf-8").splitlines()[1:]
        rows = [line.split("\t") for line in lines]
        own = [(text, numbers[label]) for part, label, text in rows if part == split]
        return [text for text, _ in own], [number for _, number in own]


_LANGUAGES = ("Dutch", "English", "German", "Indonesian", "Italian", "Portuguese", "Spanish", "Turkish")

TASKS = {
    task.name: task
    for task in (
        Task("sentiment", "is this word positive or negative?",
             {"positive": "a positive feeling", "negative": "a negative feeling"}),
        Task("grammar", "which part of speech is this word?",
             {name: f"this word is {article} {name}" for article, name in
              (("a", "noun"), ("a", "verb"), ("an", "adjective"), ("an", "adverb"))}),
        Task("language", "in which language is this sentence?",
             {name: f"this sentence is in {name}" for name in _LANGUAGES}),
    )
}  # fmt: skip


def texts(task: str, split: str) -> tuple[list[str], list[int]]:
    """Return the texts of a split of one of the three tasks, and the numbers of their labels."""
    return TASKS[task].texts(split)
