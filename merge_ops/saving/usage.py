"""How the sources of a merge are used, for its metadata: their trigger words, and hints and notes of people.

They come from the metadata of the sources and from the files that other programs write beside them. A merge
of several takes no picture of one of them: a thumbnail is of the file that it is in.
"""

from __future__ import annotations

from collections.abc import Callable

from ..lora import Lora
from ..notes.plain_text import clean_text
from ..notes.sidecars import Sidecar, read_beside, words_of

PHRASE = "modelspec.trigger_phrase"
HINT = "modelspec.usage_hint"
_MAX_HINT = 500  # characters of one source
_MAX_HINTS = 2000


def usage_of(
    loras: list[Lora], united: Callable[[list[str]], list[str]], private: Callable[[str], bool]
) -> dict[str, str]:
    """Return trigger words and usage hint of a merge, as far as its sources have any.

    Args:
        loras: the sources. One alone keeps what its own metadata says, and gets what these lack.
        united: joins texts of words between commas to a list, each word once.
        private: says that a text must not be written, since it names a folder.
    """
    beside = [Sidecar() if lora.path is None else read_beside(lora.path) for lora in loras]
    texts = [text for lora, notes in zip(loras, beside, strict=True) for text in _phrases(lora, notes)]
    words = [word for word in united(texts) if not private(word)]
    hints = [_hint(lora, notes) for lora, notes in zip(loras, beside, strict=True)]
    hints = ["" if private(hint) else hint for hint in hints]
    if len(loras) > 1:
        hints = [f"{lora.name}: {hint}" if hint else "" for lora, hint in zip(loras, hints, strict=True)]
    hint = "\n".join(dict.fromkeys(filter(None, hints)))[:_MAX_HINTS]
    own = loras[0].metadata.get(PHRASE, "") if len(loras) == 1 else ""
    phrase = own if own and len(words) == len(united([own])) else ", ".join(words)
    return {key: text for key, text in ((PHRASE, phrase), (HINT, hint)) if text}


def _phrases(lora: Lora, notes: Sidecar) -> list[str]:
    """The words of one source: those of its metadata, then others that people noted beside it."""
    stated = lora.metadata.get(PHRASE, "")
    return [stated, ", ".join(words_of(notes, lora.metadata)[0])]


def _hint(lora: Lora, notes: Sidecar) -> str:
    return clean_text(lora.metadata.get(HINT, "") or notes.notes or "", _MAX_HINT)
