"""What a sweep varies, and its list of values as text. Needs no ComfyUI.

0.2, 0.5, 0.8          a list
0.1..0.9 step 0.2      a range, which includes the last value if a step meets it; may go down
1..4                   whole numbers need no step
0, 0.2..0.8 step 0.3   lists and ranges can be mixed
linear, ties           names
down:0, down:1 mid:0.5 texts of block strengths, and down:0..1 step 0.5 for each value of a range
"""

from __future__ import annotations

import re
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

from ...merge_ops.errors import ParameterError, did_you_mean
from ...merge_ops.methods.peft_names import COMBINATION_TYPES, SPACES
from ...merge_ops.methods.registry import METHODS, Param
from .keywords import OF_ONE_LORA, PEFT_OPTION, PEFT_PARAMS
from .lora_text import MAX_STRENGTH

MAX_VALUES = 100
_MAX_DIGITS = 60
_NUMBER = r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})(?:\s*step\s*({_NUMBER}))?")
_BLOCKS = Param("", name="blocks", type=str)
_WORDS = {"true": True, "false": False}


def read_sweep(parameter: str, values: str) -> tuple[str, list[Any]]:
    """Read the name of a parameter as a merge uses it, and its values, in its type and range.

    Raises:
        ParameterError: for an unknown parameter, or a value that cannot be read or is out of range.
    """
    name, param = _param(parameter)
    words = [word.strip() for word in re.split(r"[,\n]", values) if word.strip()]
    if not words:
        raise ParameterError(f"there are no values for {name}; write for example {_example(param)}")
    if param is _BLOCKS:
        checked = [text for word in words for text in _block_texts(word)]
    else:
        checked = [param.check("sweep", value) for word in words for value in _values(word, param)]
    if len(checked) > MAX_VALUES:
        raise ParameterError(f"a sweep has at most {MAX_VALUES} values, but there are {len(checked)}")
    return name, checked


def _param(parameter: str) -> tuple[str, Param]:
    name = " ".join(parameter.split())
    setting, _, lora = name.partition(" ")
    known = _known()
    if lora and setting in OF_ONE_LORA:
        return name, _BLOCKS if setting == "blocks" else known["strength"]
    if name in known:
        return name, known[name]
    if name in OF_ONE_LORA:
        raise ParameterError(f"whose {name} is swept? Write the LoRA's name or number, as in '{name} 1'")
    hint = did_you_mean(name, [*known, *(f"{each} NAME" for each in OF_ONE_LORA)])
    if lora and (close := get_close_matches(setting, OF_ONE_LORA, n=1)):
        hint = f" (did you mean '{close[0]} {lora}'?)"
    raise ParameterError(f"there is no parameter {name!r} to sweep{hint}")


def _example(param: Param) -> str:
    if param is _BLOCKS:
        return "down:0..1 step 0.5"
    return ", ".join(param.choices[:2]) or ("1, 2, 3" if param.type is int else "0.2, 0.5, 0.8")


def _known() -> dict[str, Param]:
    shared = (
        Param("", name="method", type=str, choices=(*METHODS, PEFT_OPTION)),
        *(param for method in METHODS.values() for param in method.params),
        Param("", name="combination_type", type=str, choices=tuple(COMBINATION_TYPES)),
        *PEFT_PARAMS,
        Param("", name="space", type=str, choices=SPACES),
        Param("", 0, 4096, name="rank", type=int),
        Param("", 0, 2**53, name="seed", type=int),
        Param("", -MAX_STRENGTH, MAX_STRENGTH, name="strength"),
    )
    known: dict[str, Param] = {}
    for param in shared:
        known.setdefault(param.name, param)
    return known


def _block_texts(word: str) -> list[str]:
    """Read one value of a sweep of blocks: a text, or one for each value of a range in it."""
    from ...merge_ops.blocks import BlockStrengths

    text = " ".join(word.split())
    ends = _RANGE.search(text)
    if ends is None:
        texts = [text]
    else:
        before, behind = text[: ends.start()], text[ends.end() :]
        numbers = _range(ends[0], *(_decimal(end) if end else None for end in ends.groups()))
        texts = [f"{before}{number}{behind}" for number in numbers]
    for each in texts:
        BlockStrengths.parse(each)  # refuses what cannot be read
    return texts


def _values(word: str, param: Param) -> list[Any]:
    if param.choices:
        return [word]
    if param.type is bool:
        return [_WORDS.get(word.lower(), word)]
    if re.fullmatch(_NUMBER, word):
        return [_plain(_decimal(word))]
    ends = _RANGE.fullmatch(word)
    if ends is None:
        raise ParameterError(
            f"cannot read {word!r} as a value of {param.name}; write numbers with commas between them, or a "
            "range such as 0.1..0.9 step 0.2"
        )
    return _range(word, *(_decimal(end) if end else None for end in ends.groups()))


def _range(word: str, first: Decimal, last: Decimal, step: Decimal | None) -> list[Any]:
    """Decimals, so that 0.1..0.9 step 0.2 ends at 0.9 exactly."""
    if step is None:
        if first % 1 or last % 1:
            raise ParameterError(f"the range {word!r} needs a step, such as {first}..{last} step 0.2")
        step = Decimal(1)
    if step <= 0:
        raise ParameterError(f"the step of {word!r} must be above 0, also in a range that goes down")
    count = int(abs(last - first) / step) + 1
    if count > MAX_VALUES:
        raise ParameterError(f"a sweep has at most {MAX_VALUES} values, but {word!r} has {count}")
    sign = 1 if last >= first else -1
    return [_plain(first + sign * step * i) for i in range(count)]


def _decimal(word: str) -> Decimal:
    """A number that is written out quickly: a few letters may stand for one of a billion digits."""
    value = Decimal(word)
    if len(word) > _MAX_DIGITS or (value and abs(value.adjusted()) > _MAX_DIGITS):
        shown = word if len(word) <= _MAX_DIGITS else f"{word[:_MAX_DIGITS]}..."
        raise ParameterError(f"{shown!r} is too large or has too many digits; write it shorter")
    return value


def _plain(value: Decimal) -> int | float:
    return int(value) if value == int(value) else float(value)
