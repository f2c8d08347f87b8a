"""Pictures of ``inspect``: bars and curves are where the numbers say, and everything stays legible."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import ImageColor

from merge_ops import Lora, LowRank
from merge_ops.analysis.plots import draw, strips
from merge_ops.analysis.plots.page import (
    LEFT,
    RIGHT,
    THEMES,
    shortened,
    width_of,
    wrapped,
)
from merge_ops.analysis.study import study
from merge_ops.analysis.view_names import VIEWS
from merge_ops.blocks.order import in_model_order

LIGHT = THEMES["light"]
BLUE, ORANGE, GREY, SERIES = LIGHT.positive, LIGHT.negative, LIGHT.neutral, LIGHT.series
BLOCKS = [f"unet.down_blocks.{i}.attentions.{j}" for i in (1, 2) for j in (0, 1)]
BLOCKS += ["unet.mid_block", *(f"unet.up_blocks.0.attentions.{j}" for j in range(3))]
SHAPES = {f"{block}.proj": (48, 40) for block in BLOCKS}


@pytest.fixture(scope="module")
def pair(make_lora):
    """Two LoRAs that agree in the first block, oppose each other in the last, and change over between."""
    ink, noise = (make_lora(n, shapes=SHAPES, seed=i, rank=6, decay=0.8) for i, n in enumerate(("ink", "x")))
    layers = {}
    for i, (name, layer) in enumerate(ink.layers.items()):
        share = 1 - 2 * i / (len(SHAPES) - 1)
        up = layer.up * share + noise.layers[name].up * (1 - abs(share))
        layers[name] = LowRank(up, layer.down, 1.0, key=name)
    return study([ink, Lora("mia", layers)])


def bars(picture, colour, x):
    """First and last row of each solid run of a colour in one column of pixels."""
    rows = np.flatnonzero((np.asarray(picture)[:, round(x)] == ImageColor.getrgb(colour)).all(-1))
    split = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    return [(int(run[0]), int(run[-1])) for run in split if len(run) > 2]


def middle_of_curve(picture, colour, x):
    """Of the topmost run of about this colour below the text, in a column of pixels."""
    column = np.asarray(picture)[150:, round(x)].astype(int)
    rows = np.flatnonzero(np.abs(column - ImageColor.getrgb(colour)).sum(-1) < 60)
    return float(np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)[0].mean()) + 150


def test_bars_of_cosines_have_their_lengths_and_sides(pair):
    """Blue above the axis where the cosine is positive, orange below where it is negative."""
    picture, begins = draw(pair, "similarity"), []
    for slot, block in zip(strips.lay_out(BLOCKS), pair.relations[0].blocks, strict=True):
        assert slot.block == block.block
        colours = (BLUE, ORANGE) if block.cosine > 0 else (ORANGE, BLUE)
        ((top, bottom),) = bars(picture, colours[0], slot.middle)
        assert bottom - top == pytest.approx(abs(block.cosine) * 100, abs=2.5)
        assert not bars(picture, colours[1], slot.middle)
        begins.append(bottom if block.cosine > 0 else top)
    assert max(begins) - min(begins) <= 3, "all begin at one axis"


def test_bars_of_sign_conflicts(pair):
    """From 0 to the share; orange only where it is more than chance."""
    picture = draw(pair, "sign_conflict")
    for slot, block in zip(strips.lay_out(BLOCKS), pair.relations[0].blocks, strict=True):
        found = bars(picture, ORANGE if block.sign_conflict >= 0.52 else GREY, slot.middle)
        length = found[-1][1] - found[0][0] if found else 0
        assert length == pytest.approx(block.sign_conflict * 200, abs=3)


def test_bars_of_norms_share_one_scale(pair):
    """Both LoRAs in their own colours, lengths in proportion to the norms over both strips."""
    picture, lengths, norms = draw(pair, "norms"), [], []
    for number, of_lora in enumerate(pair.norms):
        for slot in strips.lay_out(BLOCKS):
            ((top, bottom),) = bars(picture, SERIES[number], slot.middle)
            lengths.append(bottom - top)
            norms.append(of_lora[slot.block])
    assert min(lengths) < 0.8 * max(lengths)
    assert lengths == pytest.approx([norm * max(lengths) / max(norms) for norm in norms], abs=2)


def test_the_curve_is_the_energy(make_lora):
    """At each rank the curve is as high as the share that the rank keeps."""
    alone = study([make_lora("ink", shapes=SHAPES, rank=6, decay=0.8)])
    picture, whole = draw(alone, "spectrum"), alone.spectra[0].whole
    places = [middle_of_curve(picture, SERIES[0], LEFT + (RIGHT - LEFT) * rank / 6) for rank in range(1, 6)]
    energies = [whole.energy_at(rank) for rank in range(1, 6)]
    assert energies[0] < 0.5
    found = [(places[0] - place) / 250 for place in places]
    assert found == pytest.approx([energy - energies[0] for energy in energies], abs=0.015)


@pytest.mark.parametrize("energy", [0.5, 0.99])
def test_the_bars_of_a_spectrum_are_ranks(make_lora, energy):
    """Each block's bar is the rank that keeps the energy that was asked for."""
    alone = study([make_lora("ink", shapes=SHAPES, rank=6, decay=0.8)])
    picture = draw(alone, "spectrum", energy)
    ranks = [found.rank_for(energy) for found in alone.spectra[0].blocks.values()]
    top = {0.5: 2, 0.99: 6}[energy]
    for slot, rank in zip(strips.lay_out(BLOCKS), ranks, strict=True):
        first, last = bars(picture, SERIES[0], slot.middle)[-1]
        assert last - first == pytest.approx(200 * rank / top, abs=2)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("count", [1, 2, 6])
def test_nothing_leaves_the_page(make_lora, view, count, theme):
    """Long names, many blocks, many LoRAs: margins stay empty, and every picture has its ink."""
    shapes = {f"text_encoder_2.text_model.encoder.layers.{i}.fc": (8, 8) for i in range(32)}
    shapes |= {f"transformer.single_transformer_blocks.{i}.to_q": (8, 8) for i in range(38)} | SHAPES
    loras = [make_lora("a_long_name_" * 12 + str(i), shapes=shapes, seed=i) for i in range(count)]
    pixels = np.asarray(draw(study(loras), view, theme=theme))
    paper = pixels[0, 0]
    assert pixels.shape[1] == 960 and 300 < pixels.shape[0] < 2000
    for margin in (pixels[:, :24], pixels[:, -20:], pixels[:20], pixels[-10:]):
        assert (margin == paper).all()
    assert (pixels == ImageColor.getrgb(THEMES[theme].text)).all(-1).sum() > 300


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_text_and_bars_stand_out_from_the_paper(theme):
    """By the contrast ratios of WCAG: 4.5 for text, 2 for bars, some of which are light on purpose."""

    def light(colour):
        parts = [c / 255 for c in ImageColor.getrgb(colour)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05

    def contrast(colour, paper):
        low, high = sorted((light(colour), light(paper)))
        return high / low

    for paper in (theme.paper, theme.band):
        assert min(contrast(colour, paper) for colour in (theme.text, theme.quiet)) >= 4.5
        bars = (theme.positive, theme.negative, theme.neutral, *theme.series)
        assert min(contrast(colour, paper) for colour in bars) >= 1.9


@pytest.mark.parametrize("view", VIEWS)
def test_small_text_is_legible_at_half_the_size(view, make_lora, monkeypatch):
    """On a node the picture is about 500 pixels wide: no text is smaller than 11 pixels there."""
    drawn, text = [], strips.Page.text

    def note_size(page, x, y, words, size, *rest, **more):
        drawn.append(size)
        text(page, x, y, words, size, *rest, **more)

    monkeypatch.setattr(strips.Page, "text", note_size)
    draw(study([make_lora(n, shapes=SHAPES, seed=i) for i, n in enumerate("ab")]), view)
    assert len(drawn) > 10 and min(drawn) * 500 / 960 >= 11


@pytest.mark.parametrize("count", [1, 3, 19, 57, 120])
def test_bars_do_not_touch(count):
    """Any number of blocks has its place between the axes, in model order."""
    blocks = [f"transformer.transformer_blocks.{i}" for i in range(count)]
    blocks += [f"transformer.single_transformer_blocks.{i}" for i in range(count // 3)]
    slots = strips.lay_out(in_model_order(blocks))
    assert [slot.block for slot in slots] == blocks
    edges = [edge for slot in slots for edge in slot.bar]
    assert edges == sorted(edges) and edges[0] >= LEFT and edges[-1] <= RIGHT
    assert all(b.bar[0] - a.bar[1] >= 0.9 for a, b in pairwise(slots))


def test_long_words_are_shortened_in_the_middle():
    """Beginning and end of a name tell LoRAs apart."""
    name = "ink_wash_style_for_sdxl_v12_final_epoch_000010"
    short = shortened(name, 200, 18)
    assert (
        width_of(short, 18) <= 200 and short.startswith("ink_w") and short.endswith("0010") and "…" in short
    )
    assert shortened("mia", 200, 18) == "mia"
    assert all(width_of(line, 18) <= 150 for line in wrapped(f"the LoRA {name} is strong", 150, 18))
