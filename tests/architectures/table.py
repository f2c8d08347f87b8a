"""The table of ``docs/architectures.md``, made from what the tests counted."""

import re

from tests.architectures.configs import COMFYUI
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "architectures.md"
_MARKS = re.compile(r"(<!-- table: .*? -->\n)(.*?)(\n<!-- /table -->)", re.DOTALL)
_HEAD = (
    "| Architecture | Spelling | Layers in the list | ComfyUI, this pack | ComfyUI, stock | diffusers "
    "| Also read by |\n"
    "|---|---|--:|--:|--:|--:|---|"
)


def rows(inside, outside):
    """One line a spelling: ``inside`` are the counts in ComfyUI, ``outside`` those through diffusers."""
    lines = [_HEAD]
    for architecture, (title, _, _) in COMFYUI.items():
        for spelling, counts in inside[architecture].items():
            modules, met, stock = outside[architecture][spelling]
            assert modules == counts["modules"]
            lines.append(
                f"| {title} | {spelling} | {modules} | {counts['ours']} | {counts['stock'] or '–'} "
                f"| {met or '–'} | {stock} |"
            )
    return "\n".join(lines)


def written():
    """The lines between the marks of the page."""
    return _MARKS.search(PAGE.read_text(encoding="utf-8"))[2]


def write(table):
    """Put the table between the marks."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_MARKS.sub(lambda found: found[1] + table + found[3], text), encoding="utf-8")


def columns(table, *places):
    """Some columns of the table, line by line."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return [tuple(line[place] for place in places) for line in cells]
