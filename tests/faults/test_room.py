"""Small files that stand for more than any memory holds are refused by their size, with the number."""

import pytest
import torch

import merge_ops
from merge_ops import MergeError
from merge_ops.cli import main
from tests.faults.test_any_bytes import file_of


def many(*sides):
    return torch.ones(sides)


SIDE = 90_000
BOMBS = {
    "LoKr": {"lokr_w1": many(300, 300), "lokr_w2": many(300, 300)},
    "LoKr, decomposed": {"lokr_w1": many(1, 1), "lokr_w2_a": many(SIDE, 1), "lokr_w2_b": many(1, SIDE)},
    "LoHa": {
        **{f"hada_w{i}_a": many(SIDE, 1) for i in (1, 2)},
        **{f"hada_w{i}_b": many(1, SIDE) for i in (1, 2)},
    },
    "Tucker core": {
        "lora_up.weight": many(1, SIDE), "lora_mid.weight": many(SIDE, 1, 1, 1),
        "lora_down.weight": many(1, SIDE),
    },
    "LoKr, Tucker core": {
        "lokr_w1": many(1, 1), "lokr_w2_a": many(SIDE, 1), "lokr_w2_b": many(1, SIDE),
        "lokr_t2": many(SIDE, 1, 1, 1),
    },
    "GLoRA, Tucker core": {
        "a1.weight": many(1, 1), "a2.weight": many(1, 1), "b1.weight": many(1, SIDE),
        "b2.weight": many(1, SIDE), "bm.weight": many(SIDE, 1, 1, 1),
    },
    "rank": {"lora_up.weight": many(1, SIDE), "lora_down.weight": many(SIDE, 1)},
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(BOMBS))
def test_small_files_that_ask_for_all_memory(kind, tmp_path, capsys):
    """A file of 720 kB asks for 32 GB: refused by its size, with the number, before anything is allocated."""
    path = file_of(tmp_path / "x.safetensors", BOMBS[kind])
    assert path.stat().st_size < 3e6
    with pytest.raises(MergeError) as caught:
        merge_ops.load(path)
    assert str(caught.value).startswith("x.safetensors: ")
    assert "90000" in str(caught.value)
    for command in (["inspect"], ["resize", "--rank", "2", "-o", str(tmp_path / "y.safetensors")]):
        assert main([command[0], str(path), *command[1:]]) == 1
        assert "90000" in capsys.readouterr().err


USES = {
    "ties": lambda lora: merge_ops.merge([lora, lora], method="ties").delta("a"),
    "dare": lambda lora: merge_ops.merge([lora, lora], method="dare_linear", density=0.5).delta("a"),
    "delta": lambda lora: merge_ops.merge([lora]).delta("a"),
    "its own delta": lambda lora: lora.layers["a"].delta(),
    "resized": lambda lora: merge_ops.merge([lora, lora], method="ties", rank=2),
}


@pytest.mark.parametrize("use", sorted(USES))
def test_a_delta_that_no_memory_holds(use):
    """A LoRA's factors are small enough to be added and saved; its delta is refused where it is made."""
    lora = merge_ops.Lora("x", {"a": merge_ops.LowRank(many(SIDE, 1), many(1, SIDE))})
    with pytest.raises(MergeError, match=r"90000 x 90000, which takes 30.2 GB"):
        USES[use](lora)
    assert merge_ops.merge([lora, lora]).factors("a")[0].shape == (SIDE, 2)
