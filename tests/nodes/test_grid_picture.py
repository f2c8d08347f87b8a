"""Where pictures and their labels go in a grid, and what is drawn."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from tests.nodes.pack import pack_module

arrange = pack_module("nodes.values.grid_table").arrange
drawing = pack_module("nodes.values.grid_picture")
AXES = [f"density={d}, method={m}" for d in (0.2, 0.5) for m in ("linear", "ties", "dare_ties")]


def test_two_sweeps_are_rows_and_columns():
    """In the order in which the values come first, whatever the order of the pictures."""
    table = arrange(6, AXES)
    assert table.rows == [[0, 1, 2], [3, 4, 5]]
    assert table.left == ["density=0.2", "density=0.5"]
    assert table.top == ["method=linear", "method=ties", "method=dare_ties"]
    other = arrange(6, [AXES[i] for i in (0, 3, 1, 4, 2, 5)])
    assert other.rows == [[0, 2, 4], [1, 3, 5]] and other.top == table.top


def test_a_third_sweep_goes_across():
    """Every pair of the last two sweeps has a column."""
    table = arrange(8, [f"a={a}, b={b}, c={c}" for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    assert table.left == ["a=0", "a=1"] and table.top == ["b=0, c=0", "b=0, c=1", "b=1, c=0", "b=1, c=1"]


@pytest.mark.parametrize(
    ("labels", "columns", "shape"),
    [
        (AXES[:5], 0, (1, 5)),  # not a product
        (AXES[:5] + AXES[:1], 0, (2, 3)),
        (["x, y", "x, z"], 0, (1, 2)),
        (["seed=1", "seed=2", "seed=3"], 0, (1, 3)),
        ([f"seed={i}" for i in range(7)], 0, (3, 3)),
        (AXES, 2, (3, 2)),
        ([], 0, (2, 3)),
    ],
)
def test_lists(labels, columns, shape):
    """Anything else is a list with a caption a picture."""
    table = arrange(6 if not labels else len(labels), labels, columns)
    assert (len(table.rows), len(table.rows[0])) == shape
    assert not table.left and not table.top and table.captions == labels
    assert [i for row in table.rows for i in row if i is not None] == list(range(len(labels) or 6))


@pytest.mark.parametrize("size", [(64, 64), (512, 768), (300, 40)])
@pytest.mark.parametrize("labels", [AXES, [f"seed={i}" for i in range(6)], []])
def test_every_picture_is_whole(size, labels):
    """Each is in the grid, uncovered, and there is ink where there are labels."""
    colours = [(40 * i, 200 - 30 * i, 255) for i in range(6)]
    grid = np.asarray(
        drawing.draw_grid([Image.new("RGB", size, c) for c in colours], arrange(6, labels))
    ).astype(int)
    for colour in colours:
        rows, columns = np.nonzero((grid == colour).all(-1))
        assert len(rows) == size[0] * size[1]
        assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == size
    assert ((grid.max(-1) < 100).sum() > 100) == bool(labels)


@pytest.mark.parametrize("width", [128, 512])
@pytest.mark.parametrize(
    "text",
    ["density=0.2", "strength a_very_long_name_of_a_lora-v2.1_final_fp16=0.25", "x" * 500 + "=0.25", "", " "],
)
def test_headings_fit(text, width):
    """At most three lines, none too wide, and the value is still there."""
    font = ImageFont.load_default(20)
    lines = drawing.wrap_text(text, width, font).split("\n")
    assert len(lines) <= 3
    assert max(font.getlength(line) for line in lines) <= width
    assert "".join(lines).replace(" ", "").endswith(text[-4:].strip())
