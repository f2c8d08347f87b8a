"""Reading recipes from files, and finding their sources by content or by name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import LoraFormatError, ParameterError
from ..formats import load
from ..formats.paths import WEIGHTS_NAME
from ..lora import Lora
from ..progress import Progress
from .imports import MAX_TEXT
from .recipe import Recipe
from .recipe_file import recipe_file
from .source import Source
from .source_file import SourceFile, files_called
from .spelled import ENDINGS

RECIPE_KEY = "lora_alloy"  # in a file's metadata; for a PEFT folder, that of its safetensors file
TEXT_SUFFIXES = (".json", ".yaml", ".yml")


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read the recipe of a saved ``.safetensors`` file or PEFT folder, or of a ``.json`` or ``.yaml`` file.

    Of a LoRA file only the header is read.

    >>> recipe = merge_ops.read_recipe("both.safetensors")
    >>> recipe.method, recipe.params["density"], [source.name for source in recipe.sources]
    ('ties', 0.5, ['ink', 'mia'])

    Raises:
        LoraFormatError: if the file holds no recipe, or cannot be read.
        ParameterError: if the recipe is invalid.
    """
    where = Path(path)
    file = recipe_file(where)
    if file.suffix.lower() in TEXT_SUFFIXES:
        return Recipe.parse(_text_of(file))
    noted = _metadata_of(file).get(RECIPE_KEY)
    if noted is None:
        raise LoraFormatError(
            f"{where.name} has no recipe; only files saved by LoRA Alloy have one, in their metadata "
            f"({RECIPE_KEY!r})"
        )
    return Recipe.parse(noted)


def find_sources(
    recipe: Recipe, folders: Iterable[str | os.PathLike[str]], *, progress: Progress | None = None
) -> list[Lora]:
    """Find the LoRAs of a recipe in folders and their subfolders, and read them in the recipe's order.

    A source is first looked up by its SHA-256: files of the same name are hashed first, all others only if
    needed. If that fails it is looked up by name alone, which adds a warning to the LoRA's ``warnings``.
    Links that lead out of a folder are not followed, and only safetensors files are opened.

    >>> recipe = merge_ops.read_recipe("both.safetensors")
    >>> loras = merge_ops.find_sources(recipe, ["."])
    >>> again = recipe.run(loras)
    >>> len(again.layers)
    2

    Args:
        recipe: the recipe whose sources to find.
        folders: where to look, including all subfolders.
        progress: called as ``progress(done, total, name)`` before a file is hashed.

    Raises:
        ParameterError: naming a folder or source that is missing, or the files that share a name.
        LoraFormatError: if a source cannot be read.
    """
    roots = [Path(folder) for folder in folders]
    files = list(_files_below(roots))
    paths = _paths_by_digest(recipe.sources, files, progress or (lambda *_: None))
    missing: list[Source] = []
    for source in recipe.sources:
        if (source.sha256 or "") not in paths and source not in missing:
            called = files_called(source.name, files)
            if not called:
                missing.append(source)
            else:
                paths[_key(source)] = _only_one(source, called)
    if missing:
        raise ParameterError(_not_found(missing, roots, len(files)))
    chosen = [paths.get(source.sha256 or "") or paths[_key(source)] for source in recipe.sources]
    pairs = [(path, source.adapter) for path, source in zip(chosen, recipe.sources, strict=True)]
    loras = {(path, adapter): load(path, adapter=adapter) for path, adapter in dict.fromkeys(pairs)}
    return [_with_warning(loras[pair], source) for pair, source in zip(pairs, recipe.sources, strict=True)]


def _files_below(roots: Sequence[Path]) -> Iterator[SourceFile]:
    """Yield every safetensors file once, in the order of the folders, then alphabetically."""
    seen: set[Path] = set()
    for given in roots:
        if not given.is_dir():
            raise ParameterError(f"there is no folder {given.name!r} to look for sources in; check the path")
        root = given.resolve()
        for here, below, names in os.walk(root):
            below.sort()
            for name in sorted(names):
                path = Path(here, name)
                if not name.lower().endswith(ENDINGS) or name.startswith("."):  # still being written
                    continue
                target = path.resolve()
                if target in seen or not target.is_relative_to(root) or not target.is_file():
                    continue
                seen.add(target)
                yield SourceFile(path, (root.name, *path.relative_to(root).parts))


def _paths_by_digest(
    sources: Sequence[Source], files: Sequence[SourceFile], progress: Progress
) -> dict[str, Path]:
    """Return the paths of the sources by SHA-256, reading no more files than needed."""
    wanted = {source.sha256 for source in sources if source.sha256 is not None}
    names = [source.name for source in sources if source.sha256 is not None]
    likely = [file for file in files if any(file.is_called(name) for name in names)]
    others = [file for file in files if file not in likely] if wanted else []
    paths: dict[str, Path] = {}
    for done, file in enumerate((*likely, *others)):
        if wanted <= paths.keys():
            break
        progress(done, len(likely) + len(others), file.path.name)
        paths |= {digest: path for digest, path in file.digests().items() if digest in wanted - paths.keys()}
    return paths


def _only_one(source: Source, called: list[SourceFile]) -> Path:
    """Return the path of the only file of that name; files with equal contents count as one."""
    several = [file.digests() for file in called] if len(called) > 1 else []
    if several and len({tuple(digests) for digests in several}) > 1:
        places = ", ".join("/".join(file.parts) for file in called[:5])
        raise ParameterError(
            f"several files are named {source.name!r}: {places}; give only the folder of the right one"
        )
    file = called[0]
    return file.path.parent if file.path.name == WEIGHTS_NAME and file.config else file.path


def _with_warning(lora: Lora, source: Source) -> Lora:
    """Return the LoRA, with a warning if it was found by name alone."""
    if source.sha256 is None:
        note = f"found only by its name {source.name!r}, since the recipe has no SHA-256 for it"
    elif lora.sha256 != source.sha256:
        note = f"found only by its name {source.name!r}: it is not the file that the recipe was made from"
    else:
        return lora
    return replace(lora, warnings=(*lora.warnings, note))


def _key(source: Source) -> str:
    """Return the key of a source that was found by name; the slash tells it from a SHA-256."""
    return f"/{source.name}"


def _not_found(missing: list[Source], roots: list[Path], count: int) -> str:
    listed = ", ".join(
        repr(source.name) + (f" (SHA-256 {source.sha256[:12]}...)" if source.sha256 else "")
        for source in missing
    )
    places = ", ".join(root.name or root.resolve().name or "/" for root in roots) or "no folder at all"
    many = len(missing) > 1
    return (
        f"the source{'s' * many} {listed} {'are' if many else 'is'} not among the {count} LoRA files in "
        f"{places}; name the folder that holds {'them' if many else 'it'}"
    )


def _metadata_of(file: Path) -> dict[str, str]:
    """Read the metadata in the header of a safetensors file; its tensors are not read."""
    try:
        with safe_open(file, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise LoraFormatError(f"{file.name} cannot be read as a safetensors file: {error}") from error


def _text_of(file: Path) -> str:
    if file.stat().st_size > 4 * MAX_TEXT:  # a character takes at most 4 bytes
        raise ParameterError(f"{file.name} is too large for a recipe")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParameterError(f"{file.name} is not text in UTF-8, so it is not a recipe") from error
