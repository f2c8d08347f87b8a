"""Make the texts of the benchmark's two tasks and train their LoRAs. Some minutes.

pip install --no-deps --target FOLDER textblob==0.20.1
python -m benchmarks.quality.training.texts FOLDER      (without FOLDER the texts stay as they are)

Both follow the text demo: ``merge_ops/demo/text/training`` has the split, the recipe and its settings.
"""

import random
import sys
from collections import defaultdict
from pathlib import Path

import torch

from merge_ops.demo.text.training.prepare import FAMILY, SPLITS, WORD, Labelled, split
from merge_ops.demo.text.training.train import train

from ..text.tasks import FOLDER, LORAS, MORE

TAGS = {
    "number": {"NN": "singular", "NNS": "plural"},
    "tense": {"VB": "base", "VBD": "past", "VBG": "ing"},
}
FILES = ("en-lexicon.txt", "en-spelling.txt")
TRAIN = {"number": 1600, "tense": 960}  # texts


def main() -> None:
    """Write the texts, if their source is given, and train."""
    torch.set_num_threads(1)
    for number, (name, task) in enumerate(MORE.items()):
        if len(sys.argv) > 1:
            words = lexicon(Path(sys.argv[1]), TAGS[name])
            rows = split(
                words, SPLITS | {"train": TRAIN[name]}, random.Random(number), lambda word: word[:FAMILY]
            )
            lines = ["split\tlabel\ttext", *("\t".join(row) for row in rows)]
            FOLDER.mkdir(parents=True, exist_ok=True)
            (FOLDER / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        torch.set_flush_denormal(True)
        train(task, LORAS[name], seed=10 + number)


def lexicon(packages: Path, tags: dict[str, str]) -> Labelled:
    """Words of Brill's lexicon with exactly one of these tags, if they are not rare in books."""
    folder = packages / "textblob" / "en"
    lines = {file: (folder / file).read_text(encoding="utf-8").splitlines() for file in FILES}
    counts = dict(pair for line in lines[FILES[1]] if len(pair := line.split()) == 2)
    texts = defaultdict(list)
    for line in lines[FILES[0]]:
        word, _, tag = line.partition(" ")
        if WORD.fullmatch(word) and tag in tags and int(counts.get(word, 0)) >= 2:
            texts[tags[tag]].append(word)
    return texts


if __name__ == "__main__":
    main()
