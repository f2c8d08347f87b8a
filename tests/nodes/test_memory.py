"""A device without memory: small tiles, then the CPU, which goes on where the device stopped."""

import logging

import pytest
import torch

from tests.nodes.pack import pack_module

memory = pack_module("nodes.model.memory")
scratch = pack_module("merge_ops.merging.scratch")
CPU, OTHER = torch.device("cpu"), torch.device("meta")  # meta stands for any device that is not the CPU
MATRIX = torch.arange(70.0).view(10, 7)


def tiles(full_at):
    """Rows of MATRIX in tiles of 4 on the other device, which is full at row ``full_at``; of 3 on the CPU."""

    def make(device):
        height = 3 if device == CPU else 4
        for start in range(0, 10, height):
            if device == OTHER and start >= full_at:
                raise torch.OutOfMemoryError("no memory")
            yield start, MATRIX[start : start + height].clone()

    return make


@pytest.mark.parametrize(
    ("works", "says"), [("at once", ""), ("in small tiles", "small tiles"), ("on the cpu", "on the CPU")]
)
def test_the_ladder(works, says, caplog):
    """Small tiles first, then the CPU; what was given up is said, in the log and to the caller."""
    tried = []

    def compute(device, sparing):
        small = scratch.Scratch(sparing).tile_height(64, OTHER) < scratch.Scratch().tile_height(64, OTHER)
        tried.append((device.type, small))
        if works != "at once" and device == OTHER and not (small and works == "in small tiles"):
            raise torch.OutOfMemoryError("no memory")
        return "computed"

    with caplog.at_level(logging.WARNING):
        result, line = memory.compute_with_less_memory(compute, OTHER)
    assert result == "computed" and says in line and line in caplog.text
    steps = [("meta", False), ("meta", True), ("cpu", False)]
    assert tried == steps[: 1 + ["at once", "in small tiles", "on the cpu"].index(works)]


def test_the_cpu_itself_may_run_out():
    def full(_device, _sparing=False):
        raise torch.OutOfMemoryError("no memory")

    for device in (CPU, OTHER):
        with pytest.raises(torch.OutOfMemoryError):
            memory.compute_with_less_memory(full, device)
        with pytest.raises(torch.OutOfMemoryError):
            list(memory.make_tiles(full, device))


@pytest.mark.parametrize("full_at", [0, 4, 8, 99])
def test_every_row_comes_once(full_at):
    """Whatever the device has done is not done again, and nothing is left out."""

    def on_this_machine(device):  # the meta device cannot hold the values that are compared
        return tiles(full_at)(device)

    seen = torch.zeros(10, dtype=torch.int64)
    found = torch.zeros_like(MATRIX)
    for start, tile in memory.make_tiles(on_this_machine, OTHER):
        seen[start : start + len(tile)] += 1
        if tile.device == CPU:
            found[start : start + len(tile)] += tile
    assert seen.tolist() == [1] * 10
    done = 10 if full_at == 99 else full_at
    assert torch.equal(found[:done], MATRIX[:done])
