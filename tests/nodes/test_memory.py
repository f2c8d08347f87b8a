"""A device without memory: the CPU takes over where it stopped, and a line says so. Needs no ComfyUI."""

import logging

import pytest
import torch

from tests.nodes.pack import pack_module

memory = pack_module("nodes.memory")
CPU, OTHER = torch.device("cpu"), torch.device("meta")  # meta stands for any device that is not the CPU
MATRIX = torch.arange(70.0).view(10, 7)


def compute(device):
    if device == OTHER:
        raise torch.OutOfMemoryError("no memory")
    return "computed"


def tiles(full_at):
    """Rows of MATRIX in tiles of 4 on the other device, which is full at row ``full_at``; of 3 on the CPU."""

    def make(device):
        height = 3 if device == CPU else 4
        for start in range(0, 10, height):
            if device == OTHER and start >= full_at:
                raise torch.OutOfMemoryError("no memory")
            yield start, MATRIX[start : start + height].clone()

    return make


def test_the_cpu_takes_over(caplog):
    with caplog.at_level(logging.WARNING):
        result, line = memory.or_on_cpu(compute, OTHER)
    assert result == "computed"
    assert "computed on the CPU" in line and line in caplog.text
    assert memory.or_on_cpu(compute, CPU) == ("computed", "")


def test_the_cpu_itself_may_run_out():
    def full(_device):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        memory.or_on_cpu(full, CPU)
    with pytest.raises(torch.OutOfMemoryError):
        list(memory.tiles_or_on_cpu(full, CPU))


@pytest.mark.parametrize("full_at", [0, 4, 8, 99])
def test_every_row_comes_once(full_at):
    """Whatever the device has done is not done again, and nothing is left out."""

    def on_this_machine(device):  # the meta device cannot hold the values that are compared
        return tiles(full_at)(device)

    seen = torch.zeros(10, dtype=torch.int64)
    found = torch.zeros_like(MATRIX)
    for start, tile in memory.tiles_or_on_cpu(on_this_machine, OTHER):
        seen[start : start + len(tile)] += 1
        if tile.device == CPU:
            found[start : start + len(tile)] += tile
    assert seen.tolist() == [1] * 10
    done = 10 if full_at == 99 else full_at
    assert torch.equal(found[:done], MATRIX[:done])
