"""Texts of strangers as plain text: notes from files beside a LoRA, which hold HTML."""

from __future__ import annotations

import html
import re
import unicodedata

_MAX_HTML = 200_000  # characters; Civitai's longest descriptions have ten thousand
# no part of these patterns can match in two ways, so hostile texts take no longer: Python's own parser takes
# minutes for some of a hundred thousand characters
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)[^<>]*>")
_BLOCKS = frozenset(
    "address blockquote br dd div dt h1 h2 h3 h4 h5 h6 hr li ol p pre section table tr ul".split()
)
_HIDDEN = tuple(
    (re.compile(start, re.IGNORECASE), re.compile(end, re.IGNORECASE))
    for start, end in (("<!--", "-->"), (r"<script\b", "</script[^<>]*>"), (r"<style\b", "</style[^<>]*>"))
)
# marks that turn the direction of reading, with which a text passes for another
_TURNING = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def clean_text(text: str, limit: int) -> str:
    """Return text without control characters and empty lines at its ends, cut to a length."""
    text = _TURNING.sub("", text[: 4 * limit].replace("\r\n", "\n").replace("\r", "\n"))
    seen = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs", "Co", "Cn"))
    seen = re.sub(r"[ \t\u00a0]+", " ", seen)
    seen = re.sub(r" ?\n ?", "\n", seen)
    seen = re.sub(r"\n{3,}", "\n\n", seen).strip()
    return seen if len(seen) <= limit else f"{seen[: limit - 1].rstrip()}…"


def clean_line(text: str, limit: int) -> str:
    """Return text on one line."""
    return clean_text(" ".join(text[: 4 * limit].split()), limit)


def text_of_html(given: str, limit: int) -> str:
    """Return what a reader sees of HTML; text without tags stays as it is."""
    given = given[:_MAX_HTML]
    if not _TAG.search(given):
        return clean_text(given, limit)
    for start, end in _HIDDEN:
        given = _without(given, start, end)
    return clean_text(html.unescape(_TAG.sub(_line_break, given)), limit)


def _line_break(tag: re.Match[str]) -> str:
    """What a tag is to the reader: the end of a line, the dot of a list, or nothing."""
    name = tag[2].lower()
    if name not in _BLOCKS:
        return ""
    return "\n• " if name == "li" and not tag[1] else "\n"


def _without(text: str, start: re.Pattern[str], end: re.Pattern[str]) -> str:
    """The text without what stands between two patterns, to its end where the second is missing."""
    kept, place = list[str](), 0
    while (begin := start.search(text, place)) is not None:
        kept.append(text[place : begin.start()])
        close = end.search(text, begin.end())
        place = len(text) if close is None else close.end()
    return "".join((*kept, text[place:]))
