"""How much of a merge a file keeps, in words: against the singular values of every layer's whole delta."""

import re

import pytest
import torch

import merge_ops
from merge_ops.saving.kept import Kept, percent

BLOCK = "unet.mid_block.attentions.0"
SHAPES = {f"{BLOCK}.proj_in": (320, 320), f"{BLOCK}.transformer_blocks.0.attn1.to_q": (320, 320),
          f"{BLOCK}.proj_out": (96, 320)}  # fmt: skip


@pytest.fixture
def loras(make_lora):
    """Four LoRAs of rank 8 whose singular values fall as those of trained ones."""
    return [make_lora(f"lora{seed}", shapes=SHAPES, rank=8, seed=seed, decay=0.9) for seed in range(4)]


def direct(merged, rank):
    """The share of the energy of the whole deltas that their best approximations of a rank keep."""
    kept = whole = 0.0
    for name in merged.layers:
        squares = torch.linalg.svdvals(merged.delta(name).flatten(1).double()).square()
        kept, whole = kept + float(squares[:rank].sum()), whole + float(squares.sum())
    return kept / whole


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("cut", ["when saved", "in the merge"])
def test_kept_against_a_direct_svd(loras, tmp_path, method, cut):
    """Of the merge before any truncation, wherever that happened; and what a larger rank would keep."""
    exact = merge_ops.merge(loras, method=method)
    merged = exact if cut == "when saved" else merge_ops.merge(loras, method=method, rank=4)
    report = merge_ops.save(merged, tmp_path / "small.safetensors", rank=4, dtype=torch.float32)
    kept = report.kept
    assert kept.energy == pytest.approx(direct(exact, 4), abs=2e-3) and kept.energy < 0.9
    assert kept.rank == 4 and kept.is_low
    rank, share = kept.wider
    assert share == pytest.approx(direct(exact, rank), abs=5e-3)
    assert rank == (8 if direct(exact, 8) >= 0.9 else 16)
    assert re.fullmatch(
        r"rank 4 keeps \d+ % of this merge; rank \d+ would keep (about )?\d+(\.\d)? %", kept.sentence()
    )
    if cut == "when saved":
        assert kept.energy == pytest.approx(1 - report.total_error**2, abs=1e-6)


def test_an_exact_file_keeps_all(loras, tmp_path):
    """Rounding to half precision is no loss that one could see."""
    merged = merge_ops.merge(loras)
    kept = merge_ops.save(merged, tmp_path / "whole.safetensors").kept
    assert kept.energy > 0.9999 and not kept.is_low and kept.wider is None
    assert kept.sentence() == "keeps all of this merge, up to rounding"


def test_the_command_line_says_the_same(loras, tmp_path, capsys):
    """A warning for a low share, in merge and in resize."""
    from merge_ops.cli import main

    big = tmp_path / "big.safetensors"
    merge_ops.save(merge_ops.merge(loras), big)
    assert main(["resize", str(big), "--rank", "2", "-o", str(tmp_path / "small.safetensors")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"warning: rank 2 keeps \d+ % of this merge; rank 8 would keep \d+ %", said), said


@pytest.mark.parametrize(
    ("share", "text"), [(0.6649, "66 %"), (0.995, "99.5 %"), (0.9999, "99.9 %"), (0.0, "0 %")]
)
def test_percent(share, text):
    """Rounded down, so that all is said only of all."""
    assert percent(share) == text
    assert Kept(0.7, 16, (32, 0.91)).sentence() == "rank 16 keeps 70 % of this merge; rank 32 would keep 91 %"
