"""Make the data of the three tasks from packages of PyPI. A few seconds.

pip install --no-deps --target FOLDER vaderSentiment==3.3.2 textblob==0.20.1 chatterbot-corpus==1.3.3
python -m merge_ops.demo.text.training.prepare FOLDER

Each task is balanced over its labels and split into train, dev and test. Words of one family (the same first
five letters) lie in one split only, so a test word was not seen in another form.
"""

import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import yaml

from ..tasks import ASSETS, TASKS

SPLITS = {"test": 240, "dev": 160, "train": 0}  # texts of a task, over all its labels
TRAIN = {"sentiment": 3200, "grammar": 1600, "language": 960}  # as many as the packages give
FAMILY = 5
TAGS = {"NN": "noun", "NNS": "noun", "VB": "verb", "VBD": "verb", "VBZ": "verb", "VBG": "verb"}
TAGS |= {"JJ": "adjective", "RB": "adverb"}
WORD = re.compile("[a-z]{4,}")

Labelled = dict[str, list[str]]  # texts by label


def main() -> None:
    """Write one file a task."""
    packages = Path(sys.argv[1])
    for number, (name, read) in enumerate(READERS.items()):
        sizes = SPLITS | {"train": TRAIN[name]}
        rows = split(read(packages), sizes, random.Random(number), family_of(name))
        lines = ["split\tlabel\ttext", *("\t".join(row) for row in rows)]
        (ASSETS / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(rows)} texts")


def sentiment(packages: Path) -> Labelled:
    """Words that ten people rated clearly positive or clearly negative (VADER's lexicon)."""
    texts = defaultdict(list)
    for line in _lines(packages / "vaderSentiment" / "vader_lexicon.txt"):
        word, rating, *_ = line.split("\t")
        if WORD.fullmatch(word) and abs(float(rating)) >= 1:
            texts["positive" if float(rating) > 0 else "negative"].append(word)
    return texts


def grammar(packages: Path) -> Labelled:
    """Words by their part of speech (Brill's lexicon), if they are not rare in books."""
    folder = packages / "textblob" / "en"
    counts = dict(pair for line in _lines(folder / "en-spelling.txt") if len(pair := line.split()) == 2)
    texts = defaultdict(list)
    for line in _lines(folder / "en-lexicon.txt"):
        word, _, tag = line.partition(" ")
        if WORD.fullmatch(word) and tag in TAGS and int(counts.get(word, 0)) >= 2:
            texts[TAGS[tag]].append(word)
    return texts


def language(packages: Path) -> Labelled:
    """Sentences of small talk by their language (ChatterBot's corpus); none stands under two languages."""
    texts = {}
    for label in TASKS["language"].labels:
        found: set[str] = set()
        for file in sorted((packages / "chatterbot_corpus" / "data" / label.lower()).glob("*.yml")):
            talks = yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]
            found |= {" ".join(text.split()) for talk in talks for text in talk if isinstance(text, str)}
        texts[label] = {text for text in found if 12 <= len(text) <= 90 and len(text.split()) > 1}
    return {
        label: sorted(own - set().union(*(other for name, other in texts.items() if name != label)))
        for label, own in texts.items()
    }


READERS: dict[str, Callable[[Path], Labelled]] = {
    "sentiment": sentiment,
    "grammar": grammar,
    "language": language,
}


def family_of(task: str) -> Callable[[str], str]:
    """What must not be split: a word's family, or a sentence without its punctuation and case."""
    if task == "language":
        return lambda text: re.sub(r"\W+", " ", text).strip().lower()
    return lambda word: word[:FAMILY]


def split(
    texts: Labelled, sizes: dict[str, int], chance: random.Random, family: Callable[[str], str]
) -> list[tuple[str, str, str]]:
    """Rows of split, label and text; families are drawn at random, and fill test, dev, train in turn."""
    families = defaultdict(list)
    for label in sorted(texts):
        for text in sorted(set(texts[label])):
            families[family(text)].append((label, text))
    order = sorted(families)
    chance.shuffle(order)
    rooms = {part: {label: size // len(texts) for label in texts} for part, size in sizes.items()}
    rows = []
    for key in order:
        labels = {label for label, _ in families[key]}
        part = next((part for part, room in rooms.items() if any(room[label] for label in labels)), "")
        for label, text in families[key] if part else []:
            if rooms[part][label]:
                rooms[part][label] -= 1
                rows.append((part, label, text))
    return sorted(rows, key=lambda row: (list(sizes).index(row[0]), *row[1:]))


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    main()
