r"""The list of LoRAs as text: one ``<lora:name:strength[:clip strength]>`` per line; ``#`` turns a line off.

``:on=high`` or ``:on=low`` behind the strengths says for which of two models the LoRA is, ``:on=both`` that
it is for both, and ``:steps=TEXT`` when in the sampling it is on, and how much.
``:blocks=TEXT`` (or A1111's ``:lbw=TEXT``) gives a strength for each block, and ``:prompt=TEXT`` the prompts
that show what the LoRA does, with ``|`` between them. The prompt is the last part, so colons and commas are
free in it; ``<`` and ``>`` are written ``\<`` and ``\>``, and a backslash before one of them, or at the end,
is doubled. Needs neither ComfyUI nor torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from ...merge_ops.errors import ParameterError

MAX_STRENGTH = 100.0
_TAG = "<lora:"
_INSIDE = re.compile(r"(?:[^<>\n\\]|\\[^\n])+")  # up to where a tag ends, or cannot be one
# the numbers that web/js/list/text.js accepts; float() would accept more
_NUMBER = re.compile(
    r"\s*[+-]?((\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|nan|inf(inity)?)\s*", re.ASCII | re.IGNORECASE
)
_BLOCKS = re.compile(r":(?:blocks|lbw)=(.*)$")
_STEPS = re.compile(r":steps=((?:(?!:(?:blocks|lbw)=).)*)")
_ON = re.compile(r":on=([^:]*)")
_PROMPT = ":prompt="
MODELS = ("high", "low", "both")


@dataclass(frozen=True, slots=True)
class LoraRow:
    """One line of the list. ``strength_clip`` None means ``strength``.

    ``blocks`` and ``steps`` are as written. ``on`` is one of ``MODELS``, or empty where the row does not say.
    ``prompt`` holds one prompt or several with ``|`` between them, without the escapes of the text.
    """

    lora_name: str
    strength: float = 1.0
    strength_clip: float | None = None
    enabled: bool = True
    blocks: str = ""
    prompt: str = ""
    steps: str = ""
    on: str = ""
    typed: str = field(default="", compare=False)  # the name with spaces at its ends, where it has some

    @property
    def wanted(self) -> str:
        """The name to look the file up by: spaces at its ends may be part of it."""
        return self.typed or self.lora_name

    @property
    def clip(self) -> float:
        """The strength for the text encoder."""
        return self.strength if self.strength_clip is None else self.strength_clip


def parse_rows(text: str) -> list[LoraRow]:
    """Read the list; several tags on a line are several rows.

    Raises:
        ParameterError: if a line is neither a row nor a comment; the message has its number.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        enabled = not line.lstrip().startswith("#")
        tags, around = _tags(line)
        rest = around.strip(" ,\t")
        if enabled and rest:
            raise ParameterError(
                f"line {number} of the LoRA list: cannot read {rest!r}; write <lora:name:strength>"
            )
        rows += [_row(tag, enabled, number) for tag in tags]
    return rows


def format_rows(rows: list[LoraRow]) -> str:
    """Write the list; ``parse_rows`` reads it back.

    Raises:
        ParameterError: if a strength is not a finite number.
    """
    return "\n".join(_line(row) for row in rows)


def _tags(line: str) -> tuple[list[str], str]:
    """What the tags of a line hold, and the rest of the line; in one pass over it, whatever it holds."""
    tags, rest, end = list[str](), list[str](), 0
    start = line.find(_TAG)
    while start >= 0:
        inside = _INSIDE.match(line, start + len(_TAG))
        behind = inside.end() if inside else start + len(_TAG)
        if inside and line.startswith(">", behind):
            tags.append(inside[0])
            rest.append(line[end:start])
            end = behind = behind + 1
        start = line.find(_TAG, behind)
    return tags, "".join((*rest, line[end:]))


def _row(tag: str, enabled: bool, number: int) -> LoraRow:
    """Strengths are read from the right, since a name may contain colons."""
    tag, _, prompt = tag.partition(_PROMPT)
    tag, on = _cut(_ON, tag)
    if on is not None and on.lower() not in MODELS:
        raise ParameterError(f"line {number} of the LoRA list: on={on} is none of {', '.join(MODELS)}")
    tag, steps = _cut(_STEPS, tag)
    end = _BLOCKS.search(tag)
    blocks = end[1].strip() if end else ""
    parts = (tag[: end.start()] if end else tag).split(":")
    strengths: list[float] = []
    while len(parts) > 1 and len(strengths) < 2 and (value := _number(parts[-1])) is not None:
        strengths.insert(0, value)
        parts.pop()
    typed = ":".join(parts)
    name = typed.strip()
    if not name:
        raise ParameterError(f"line {number} of the LoRA list has no file name; write <lora:name:strength>")
    for value in strengths:
        if not abs(value) <= MAX_STRENGTH:
            raise ParameterError(f"line {number} of the LoRA list: strength {value} is outside [-100, 100]")
    return LoraRow(
        name,
        strengths[0] if strengths else 1.0,
        strengths[1] if len(strengths) > 1 else None,
        enabled,
        blocks,
        _unescape(prompt).strip(),
        steps or "",
        (on or "").lower(),
        typed if typed != name else "",
    )


def _cut(part: re.Pattern[str], tag: str) -> tuple[str, str | None]:
    """A tag without a part, and the text of that part; None if the tag has none."""
    found = part.search(tag)
    return (tag[: found.start()] + tag[found.end() :], found[1].strip()) if found else (tag, None)


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def _line(row: LoraRow) -> str:
    strengths = [row.strength] if row.strength_clip is None else [row.strength, row.strength_clip]
    if not all(map(math.isfinite, strengths)):
        raise ParameterError(f"the strength of {row.lora_name} is not a finite number")
    on = [f"on={row.on}"] if row.on else []
    steps = [f"steps={row.steps}"] if row.steps else []
    blocks = [f"blocks={row.blocks}"] if row.blocks else []
    prompt = [f"prompt={_escape(row.prompt)}"] if row.prompt else []
    tag = ":".join((row.lora_name, *(f"{value:g}" for value in strengths), *on, *steps, *blocks, *prompt))
    return f"<lora:{tag}>" if row.enabled else f"# <lora:{tag}>"


def _escape(prompt: str) -> str:
    r"""Write a prompt so that it can stand in a tag; most backslashes stay, since prompts write ``\(``."""
    one_line = " ".join(prompt.splitlines())
    return re.sub(
        r"(?<!\\)(\\*)([<>])|(?<!\\)(\\+)$", lambda m: m[3] * 2 if m[3] else f"{m[1] * 2}\\{m[2]}", one_line
    )


def _unescape(written: str) -> str:
    return re.sub(r"(?<!\\)(\\+)([<>]|$)", lambda m: "\\" * (len(m[1]) // 2) + m[2], written)
