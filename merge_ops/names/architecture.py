"""What a row is made of: one ``Architecture`` per model, and a ``Family`` where models share names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

# who named the layers: the authors of the model, or diffusers
Structure = Literal["original", "diffusers"]
# original layer -> its names in diffusers, several where it is fused
LayerNames = Mapping[str, tuple[str, ...]]
# (original block, diffusers' block, its layers); ``#`` stands for the number of a block
LayerTable = tuple[tuple[str, str, LayerNames], ...]

_BLOCK_NUMBER = re.compile(r"^[a-z_]*?blocks_(\d+)_")


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Models that name layers alike, so that only widths and numbers of blocks tell them apart.

    ``patterns`` match the beginning of a name without dots. Models of this family may also have names of the
    families in ``settles``; one name of this family then decides against those.
    """

    name: str
    title: str
    patterns: Mapping[Structure, str]
    settles: tuple[str, ...] = ()


class Sized(Protocol):
    """What is looked at of a layer: its name in the file and its sides. The header of a file has both."""

    @property
    def key(self) -> str:
        """The module's name as the file spells it."""

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(out, in)``, with the kernel in the columns."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The layers of one LoRA, as the rows of a family look at them to tell its models apart."""

    layers: Mapping[str, Sized]  # by name without dots
    names: Collection[str]  # as the LoRA has them, and as its file does

    @property
    def attention_width(self) -> int:
        """The smaller side of the largest attention weight."""
        return max((min(la.matrix_shape) for name, la in self.layers.items() if "attn" in name), default=0)

    @property
    def last_block(self) -> int:
        """The highest number of a block."""
        numbers = (int(match[1]) for name in self.layers if (match := _BLOCK_NUMBER.match(name)))
        return max(numbers, default=0)

    def input_widths(self, pattern: str) -> set[int]:
        """Return the input widths of the layers whose flat name has the pattern in it."""
        return {la.matrix_shape[1] for name, la in self.layers.items() if re.search(pattern, name)}

    def has(self, pattern: str) -> bool:
        """Return True if a flat name has the pattern in it."""
        return any(re.search(pattern, name) for name in self.layers)


@dataclass(frozen=True, slots=True)
class Converter:
    """Diffusers' own converter of original names: a pipeline with ``lora_state_dict``.

    ``spelling`` is the one that it reads best: ``kohya``, or ``dotted`` with the prefix ``diffusion_model.``.
    ``renames`` are regular expressions and replacements for dotted names that it expects in another form.
    """

    pipeline: str
    spelling: Literal["kohya", "dotted"]
    renames: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Architecture:
    """All that the code knows about one model. Every table over models is made from these rows.

    Args:
        name: the key of the row, as in ``load(path, architecture="flux")``.
        title: what people call the model.
        patterns: by structure, the beginning of names without dots that only this model has.
        families: the families whose names the model has, and what tells it from the others there; it returns
            None where nothing does. None instead of that: it is the one when no other model fits.
        blocks: name of a sequence of blocks -> ``double``, ``single`` or plain ``blocks``.
        order: words of paths, from the input to the output of the model; one entry may have several words,
            for both structures. What is not listed comes first.
        words: component -> the words of its names, to put the dots back into kohya's spelling of them.
        converter: what brings original names to diffusers'.
        comfyui: ``image_model`` of ComfyUI's configuration -> diffusers' names of its layers, where they
            differ; a model that shares its ``image_model``, or has none, is under a name of its own.
        checkpoint: beginnings of keys in a whole checkpoint of the model.
        lacks: field -> the reason why it is empty or None.
        processors: block sequence -> layer of XLabs' attention processors -> the layer that it changes.
        swapped: original layers whose two halves of rows are the other way round in diffusers, with ``#`` for
            the number of a block; if they have more than two parts, they are the same.
        experts: the version of the model that has one expert for high noise and one for low noise.
        aliases: patterns of other names for a layer of the original model, without their component, and what
            replaces them.
        component: what most readers look for in front of diffusers' names.
        kohya: what ComfyUI and diffusers look for in front of diffusers' names in kohya's files; a name with
            dots follows a prefix with a dot.
    """

    name: str
    title: str
    patterns: Mapping[Structure, str]
    families: Mapping[Family, Callable[[Evidence], bool | None] | None]
    blocks: Mapping[str, Literal["double", "single", "blocks"]]
    order: tuple[str, ...]
    words: Mapping[str, str]
    converter: Converter | None
    comfyui: Mapping[str, LayerTable]
    checkpoint: tuple[str, ...]
    lacks: Mapping[str, str]
    processors: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    swapped: tuple[str, ...] = ()
    experts: str | None = None
    aliases: tuple[tuple[str, str], ...] = ()
    component: str = "transformer"
    kohya: str = "lora_transformer_"
