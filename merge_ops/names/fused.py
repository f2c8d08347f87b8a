"""Names of weights that some programs keep as one and others apart: q, k and v, gate and up, experts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

# last word of a fused weight -> the words of its rows, from the top; a model has one of these sets
_PARTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "to_qkv": (("to_q", "to_k", "to_v"), ("wq", "wk", "wv"), ("q", "k", "v")),
    "to_added_qkv": (("add_q_proj", "add_k_proj", "add_v_proj"),),
    "to_kv": (("to_k", "to_v"), ("wk", "wv"), ("k", "v")),
    "to_added_kv": (("add_k_proj", "add_v_proj"),),
    "qkv_proj": (("q_proj", "k_proj", "v_proj"),),
    "kv_proj": (("k_proj", "v_proj"),),
    "qkv": (
        ("to_q", "to_k", "to_v"),
        ("q", "k", "v"),
        ("wq", "wk", "wv"),
        ("q_proj", "k_proj", "v_proj"),
    ),
    "gate_up_proj": (("gate_proj", "up_proj"),),
}
_FUSED = re.compile(
    rf"(?P<head>.*?[._])(?P<word>{'|'.join(sorted(_PARTS, key=len, reverse=True))})(?P<rest>\.bias)?"
)
_ENDS = tuple(word + rest for word in _PARTS for rest in ("", ".bias"))
# Mixtral's words for gate, up and down, and everybody else's
_EXPERT_WORDS = {
    "gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj",
    "w1": "gate_proj", "w3": "up_proj", "w2": "down_proj",
}  # fmt: skip
_BLOCK = r"(?P<block>mlp|block_sparse_moe|feed_forward|moe)"
_EXPERT = re.compile(
    rf"(?P<head>.*\.){_BLOCK}\.experts\.(?P<number>\d+)\.(?P<word>{'|'.join(_EXPERT_WORDS)})"
)
_ROUTER = re.compile(r"(?P<head>.*\.)block_sparse_moe\.gate")
_STACKED = re.compile(rf".*\.{_BLOCK}\.experts\.(?:gate_up_proj|down_proj)(?:\[\d+\])?")


def parts_of(name: str) -> list[tuple[str, ...]]:
    """Return what the parts of a fused weight may be called, from its first rows to its last.

    ``[]`` for the name of a weight that no program fuses.
    """
    match = _FUSED.fullmatch(name) if name.endswith(_ENDS) else None
    if match is None:
        return []
    rest = match["rest"] or ""
    return [tuple(f"{match['head']}{word}{rest}" for word in words) for words in _PARTS[match["word"]]]


def block_of_stacked(name: str) -> str | None:
    """Return what the block of an expert's matrix is called, if one parameter holds all experts."""
    match = _STACKED.fullmatch(name) if "experts" in name else None
    return None if match is None else match["block"]


def expert_parts(name: str, blocks: Collection[str]) -> tuple[str, str] | None:
    """Return ``(name of the stacked matrix, word)`` of an expert's module as transformers 4 has it.

    ``blocks`` has what the blocks with stacked experts are called, which may be another word.

    The word is ``gate_proj``, ``up_proj`` or ``down_proj``; the first two are rows of one matrix. None for
    anything else.
    """
    match = _EXPERT.fullmatch(name) if "experts" in name else None
    if match is None:
        return None
    block = match["block"] if match["block"] in blocks else min(blocks)
    word = _EXPERT_WORDS[match["word"]]
    parameter = "down_proj" if word == "down_proj" else "gate_up_proj"
    return f"{match['head']}{block}.experts.{parameter}[{match['number']}]", word


def current_router(name: str) -> str:
    """Return the name of Mixtral's router in transformers 5; any other name unchanged."""
    match = _ROUTER.fullmatch(name)
    return name if match is None else f"{match['head']}mlp.gate"
