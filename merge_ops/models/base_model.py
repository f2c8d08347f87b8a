"""A base model on disk: its weights, without reading any tensor, and the other files that belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ..errors import LoraFormatError
from ..formats.header import Entry
from ..formats.shard import Shard

RECIPE = "lora_alloy.json"  # the recipe that a fused model was made with
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".pkl")
_ABOUT_THE_BASE = ("README.md", RECIPE)

Kind = Literal["transformers", "diffusers", "file"]


@dataclass(frozen=True)
class BaseModel:
    """A folder of transformers or diffusers, or a single file."""

    path: Path
    kind: Kind
    config: dict[str, Any]
    shards: tuple[Shard, ...]
    files: tuple[Path, ...]  # the other files that belong to the model
    left_out: tuple[str, ...]  # names of the rest: weights in other formats, hidden files, the model card

    @cached_property
    def tensors(self) -> dict[str, Entry]:
        """Every tensor of every shard, by name; of one name in several parts of a pipeline, the first."""
        return {entry.name: entry for shard in reversed(self.shards) for entry in reversed(shard.entries)}

    @property
    def count(self) -> int:
        """The number of tensors."""
        return sum(len(shard.entries) for shard in self.shards)

    def tensors_before(self, shard: Shard) -> int:
        """Return the number of tensors in the shards before this one."""
        return sum(len(s.entries) for s in self.shards[: self.shards.index(shard)])

    def inside(self, file: Path) -> Path:
        """Return where a file lies inside the model's folder."""
        return Path(file.name) if self.kind == "file" else file.relative_to(self.path)

    @property
    def size(self) -> int:
        """The size of all files in bytes."""
        return sum(s.size for s in self.shards) + sum(file.stat().st_size for file in self.files)

    def setting(self, key: str) -> Any:
        """Return a value of the configuration, or of its text part in a larger model; None if missing."""
        inner = self.config.get("text_config")
        return self.config.get(key, inner.get(key) if isinstance(inner, dict) else None)


def is_weights(file: Path) -> bool:
    """Return True for a file of weights, in any format."""
    return file.suffix.lower() in _WEIGHTS


def is_about_the_base(file: Path) -> bool:
    """Return True for what describes the base model only, and for hidden files."""
    return file.name in _ABOUT_THE_BASE or file.name.startswith(".")


def refuse_duplicates(shards: tuple[Shard, ...]) -> None:
    """Refuse shards of which two have a tensor of one name.

    Raises:
        LoraFormatError: naming both.
    """
    seen: dict[str, str] = {}
    for shard in shards:
        for entry in shard.entries:
            if entry.name in seen:
                raise LoraFormatError(f"{entry.name} is in both {seen[entry.name]} and {shard.path.name}")
            seen[entry.name] = shard.path.name
