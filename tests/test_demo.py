"""The demo: files that ship, the picture, the table, and a model that is left as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="the demo needs diffusers")
Image = pytest.importorskip("PIL.Image", reason="the demo needs pillow")

from merge_ops import demo, load  # noqa: E402
from merge_ops.demo.measure import Studio  # noqa: E402
from merge_ops.demo.model import ASSETS  # noqa: E402
from merge_ops.demo.plan import LORAS, MERGES, ROWS  # noqa: E402
from merge_ops.merging import merge  # noqa: E402

pytestmark = pytest.mark.slow

METHODS = ("linear", "ties", "dare_ties", "PEFT linear")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, demo.run(folder, count=8, seed=5, methods=METHODS)


def test_assets_are_small():
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) < 4_000_000


def test_loras_come_in_several_formats_and_ranks():
    loras = [load(ASSETS / "loras" / file) for file, _ in LORAS.values()]
    assert {lora.rank for lora in loras} == {3, 4, 8}
    assert all(len(merge([lora]).layers) == len(lora.layers) > 0 for lora in loras)


def test_picture_is_not_blank_and_methods_differ(ran):
    with Image.open(ran[0] / "demo.png") as file:
        picture = file.convert("RGB")
    assert 1600 <= picture.width <= 2400
    assert picture.height > 600
    assert len(picture.getcolors(maxcolors=1 << 24)) > 1000


def test_table_file_is_what_run_returns(ran):
    folder, data = ran
    assert json.loads((folder / "table.json").read_text()) == data
    assert (folder / "table.md").read_text().count("| linear |") == len(MERGES)


def test_each_lora_teaches_its_skill(ran):
    _, data = ran
    for name, (_, (digit, style)) in LORAS.items():
        prompt = str(digit) if style == "plain" else f"{style} {digit}"
        assert data["base"][prompt] <= 0.25, f"the base can already draw {prompt}"
        assert data["alone"][name][prompt] >= 0.6


def test_two_loras_work_together_and_unequal_ranks_are_refused_in_factor_space(ran):
    merges = ran[1]["merges"]
    two = merges["Two LoRAs"]["methods"]
    assert min(two["linear"].values()) >= 0.75
    assert sum(two["ties"].values()) < sum(two["linear"].values())
    assert merges["All six LoRAs"]["methods"]["PEFT linear"] is None


def test_linear_keeps_more_than_methods_that_elect_signs(ran):
    """As README.md and docs/methods.md say of every group of LoRAs."""
    for title, group in ran[1]["merges"].items():
        means = {name: sum(group["methods"][name].values()) for name in ("linear", "ties", "dare_ties")}
        assert means["linear"] > max(means["ties"], means["dare_ties"]), title


def test_weights_come_back_bit_for_bit_and_drawings_differ_between_methods():
    studio = Studio(count=2, seed=5)
    before = {name: value.clone() for name, value in studio.unet.state_dict().items()}
    drawn = {row.title: studio.merged(row, MERGES[1]) for row in ROWS if row.title in METHODS}
    assert all(torch.equal(value, before[name]) for name, value in studio.unet.state_dict().items())
    first = [torch.stack([cell.images for cell in cells.values()]) for cells in drawn.values()]
    assert len(first) == len(METHODS)
    assert all((first[0] - other).abs().mean() > 0.01 for other in first[1:])


def test_figures_of_the_known_seed(ran):
    merges = ran[1]["merges"]
    means = {
        (title, method): sum(figures.values()) / len(figures)
        for title, group in merges.items()
        for method, figures in group["methods"].items()
        if figures is not None and method != "dare_ties"
    }
    expected = {
        ("Two LoRAs", "linear"): 1.0,
        ("Two LoRAs", "ties"): 0.96,
        ("Two LoRAs", "PEFT linear"): 0.67,
        ("Four LoRAs", "linear"): 0.52,
        ("Four LoRAs", "ties"): 0.19,
        ("Four LoRAs", "PEFT linear"): 0.08,
        ("All six LoRAs", "linear"): 0.42,
        ("All six LoRAs", "ties"): 0.14,
    }
    assert means == pytest.approx(expected, abs=0.12)
