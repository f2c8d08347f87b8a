"""What a LoRA is, from its header and the files beside it, for the card, the picker and the trigger words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import folder_paths

from ....merge_ops.errors import MergeError
from ....merge_ops.formats.outline import Outline, read_outline
from ....merge_ops.formats.paths import CONFIG_NAME
from ....merge_ops.notes.plain_text import clean_line, clean_text
from ....merge_ops.notes.sidecars import Sidecar, read_peft_base, read_sidecars, sidecar_paths, words_of
from ....merge_ops.notes.trigger_words import join_words, read_tags
from ....merge_ops.recipes.recipe import Recipe
from ....merge_ops.recipes.sources import RECIPE_KEY
from ...values.base_models import name_base
from ...values.lora_names import use_forward_slashes
from ...values.stack_entries import StackEntry
from .companions import State, find_sidecars, read_states
from .lora_files import FileState, find_path, list_lora_files
from .remembered import Remembered

_KINDS = {"full difference": "full weights", "OFT of PEFT": "OFT", "BOFT of PEFT": "BOFT", "(IA)3": "(IA)³"}
_STATED = ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name")
_MAX_THUMBNAIL = 512 * 1024
_THUMBNAILS = tuple(f"data:image/{kind};base64," for kind in ("jpeg", "png", "webp"))


@dataclass(slots=True)
class _Known:
    """What was read of one LoRA; ``outline`` is None where its header cannot be read."""

    sidecar: Sidecar
    outline: Outline | None = None
    trained_on: str | None = None  # as the configuration of a PEFT folder names it
    problems: list[str] = field(default_factory=list)

    @property
    def stated(self) -> list[str]:
        """What the trainer noted of the base model."""
        noted = [clean_line(self.metadata[key], 300) for key in _STATED if self.metadata.get(key)]
        return noted if self.trained_on is None else [*noted, self.trained_on]

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.outline.metadata if self.outline else {}


def _read(path: Path) -> _Known:
    known = _Known(read_sidecars(find_sidecars(path)), trained_on=read_peft_base(path.with_name(CONFIG_NAME)))
    try:
        known.outline = read_outline(path)
    except MergeError as error:
        known.problems.append(str(error))
    return known


def describe_lora(name: str) -> dict[str, Any]:
    """Return all that is known of a LoRA, as plain values for the card.

    Raises:
        ParameterError: if there is no such file, or several.
    """
    return dict(_descriptions.of(find_path(name)))


def _describe(path: Path) -> dict[str, Any]:
    stat = path.stat()
    known = _read(path)
    outline, sidecar, metadata = known.outline, known.sidecar, known.metadata
    tags = read_tags(metadata)
    words, source = words_of(known.sidecar, known.metadata)
    recipe, problem = _recipe(metadata)
    problems = [*known.problems, *([problem] if problem else [])]
    problems += [f"the notes in {file} could not be read" for file in sidecar.problems]
    return {
        "base": _base(known),
        "architecture": _architecture(outline),
        "stated": list(dict.fromkeys((*sidecar.bases, *map(_file_name, known.stated)))),
        "kind": _kind(outline),
        "rank": max(outline.ranks) if outline and outline.ranks else None,
        "ranks": list(outline.ranks[:20]) if outline else [],
        "layers": outline.layers if outline else None,
        "size": stat.st_size,
        "modified": int(stat.st_mtime * 1000),
        "trigger_words": words,
        "words_from": source,
        "training_tags": [asdict(tag) for tag in tags],
        "title": sidecar.title or _line(metadata, "modelspec.title"),
        "author": sidecar.author or _line(metadata, "modelspec.author"),
        "license": _line(metadata, "modelspec.license"),
        "strength": sidecar.strength,
        "notes": sidecar.notes
        or _paragraph(metadata, "modelspec.usage_hint")
        or _paragraph(metadata, "ss_training_comment"),
        "description": sidecar.description or _paragraph(metadata, "modelspec.description"),
        "recipe": recipe,
        "thumbnail": _thumbnail(metadata),
        "problems": problems,
    }


def name_bases(names: Iterable[str]) -> dict[str, str | None]:
    """Return the base model of each LoRA; None where it is unknown, and for a name of no file.

    Names are those of the files in the list of files, whole.
    """
    files = {use_forward_slashes(file): file for file in list_lora_files()}
    found: dict[str, str | None] = {}
    for name in names:
        file = files.get(use_forward_slashes(name))
        path = folder_paths.get_full_path("loras", file) if file is not None else None
        found[name] = None if path is None else _bases.of(Path(path))
    return found


def trigger_words_of(entries: Iterable[StackEntry]) -> str:
    """Return the trigger words of a stack's LoRAs, in their order and each once."""
    return join_words(_words_of(entry.lora_name) for entry in entries if entry.lora_name is not None)


def read_sidecar_states(files: Iterable[FileState]) -> list[State]:
    """Read what the trigger words of files depend on besides the files themselves."""
    return [read_states(sidecar_paths(Path(path))) for path, _, _ in files]


def _words_of(name: str) -> list[str]:
    try:
        path = find_path(name)
    except MergeError:  # of a stack of another pack, or removed since it was read
        return []
    return _words.of(path)


def _words_in(known: _Known) -> list[str]:
    return words_of(known.sidecar, known.metadata)[0]


def _base(known: _Known) -> str | None:
    outline = known.outline
    guess, width = (outline.guess, outline.width) if outline else (None, 0)
    return name_base(guess, width, known.sidecar.bases, known.stated)


def _architecture(outline: Outline | None) -> str | None:
    guess = outline.guess if outline else None
    return None if guess is None or guess.others else guess.name


def _file_name(stated: str) -> str:
    """A path of the trainer's machine without its folders; names of models at Hugging Face stay whole."""
    is_path = stated.endswith((".safetensors", ".ckpt")) or "\\" in stated or stated.startswith("/")
    return re.split(r"[\\/]", stated)[-1] if is_path else stated


def _kind(outline: Outline | None) -> str | None:
    """The kinds in words, such as ``LoKr + DoRA``."""
    if outline is None or not outline.kinds:
        return None
    kinds = [kind for kind in outline.kinds if kind != "LoRA" or "LoCon" not in outline.kinds]
    return " + ".join(_KINDS.get(kind, kind) for kind in kinds)


def _recipe(metadata: Mapping[str, str]) -> tuple[dict[str, Any] | None, str | None]:
    """The recipe of a merge, or what is wrong with it."""
    text = metadata.get(RECIPE_KEY)
    if text is None:
        return None, None
    try:
        return Recipe.parse(text).to_dict(), None
    except MergeError as error:
        return None, f"its recipe could not be read: {error}"


def _thumbnail(metadata: Mapping[str, str]) -> str | None:
    text = metadata.get("modelspec.thumbnail", "")
    is_small = len(text) <= _MAX_THUMBNAIL and text.isascii() and text.isprintable()
    return text if is_small and text.startswith(_THUMBNAILS) else None


def _line(metadata: Mapping[str, str], key: str) -> str | None:
    return clean_line(metadata.get(key, ""), 200) or None


def _paragraph(metadata: Mapping[str, str], key: str) -> str | None:
    text = metadata.get(key, "")
    return None if text in ("", "None") else clean_text(text, 6000) or None


_descriptions = Remembered(_describe, 100)
_bases = Remembered(lambda path: _base(_read(path)), 20_000)
_words = Remembered(lambda path: _words_in(_read(path)), 20_000)
