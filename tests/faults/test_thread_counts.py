"""A saved file has the same bytes for every number of threads and every repetition."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from merge_ops import METHODS
from merge_ops.steady import _SHARED, in_order, one_thread, product, total
from tests.needs import needs_mkl

ROOT = Path(__file__).parents[2]


def bytes_on(threads):
    """What ``merged_bytes`` prints in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.merged_bytes", str(threads)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@needs_mkl
def test_a_saved_file_has_the_same_bytes_on_1_2_and_3_threads():
    """Of every method, with and without a rank, of PEFT's types, and of an adapter that needs the base."""
    alone = bytes_on(1)
    assert len(alone) == 2 * len(METHODS) + 6 and len(set(alone)) == len(alone)
    for threads in (2, 3):
        assert bytes_on(threads) == alone, threads
    assert bytes_on(3) == alone  # and again


def matrices():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1280, 700, generator=generator), torch.randn(700, 90, generator=generator)


@needs_mkl
def test_linear_algebra_is_the_same_on_every_number_of_threads():
    """Products that are shared out in blocks, and decompositions on one thread."""
    left, right = matrices()
    assert left.numel() * right.shape[1] > _SHARED
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            with one_thread():
                parts = [left.T @ left, *torch.linalg.qr(left), *torch.linalg.eigh(right.T @ right)]
            found.append([product(left, right), product(left.T, left), *parts])
        assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))
    assert torch.allclose(found[0][0], left @ right, atol=1e-3)
    assert torch.allclose(found[0][1], left.T @ left, atol=1e-3)


@pytest.mark.parametrize("cost", [0, _SHARED])
def test_blocks_come_back_in_order_and_errors_come_through(cost):
    blocks = list(torch.arange(12.0).split(2))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert in_order(lambda block: float(block[0]), blocks, cost) == [0, 2, 4, 6, 8, 10]
        with pytest.raises(ZeroDivisionError):
            in_order(lambda block: 1 / int(block[0]), blocks, cost)
    finally:
        torch.set_num_threads(before)


def test_sums_are_exact_to_double_precision():
    values = torch.full((300, 300), 0.1, requires_grad=True)
    assert total(values) == pytest.approx(90000 * float(torch.tensor(0.1)), rel=1e-12)
