"""A file just written is compared with what was written: every tensor, every bit, the metadata."""

import struct

import pytest
import torch
from safetensors.torch import save_file

from merge_ops.errors import MergeError
from merge_ops.formats.container import is_finite, read_container
from merge_ops.formats.written import Written
from merge_ops.merging.svd import product_inner
from merge_ops.saving.rounding import truncation_error

METADATA = {"lora_alloy": "{}", "title": "two"}


def tensors():
    """One tensor of several blocks, one without a shape, one without entries."""
    generator = torch.Generator().manual_seed(0)
    return {
        "long": torch.randn(700, 900, generator=generator),
        "half": torch.randn(5, 3, generator=generator).half(),
        "alpha": torch.tensor(4.0, dtype=torch.bfloat16),
        "none": torch.empty(0, 3),
    }


@pytest.fixture
def path(tmp_path):
    save_file(tensors(), tmp_path / "a.safetensors", METADATA)
    return tmp_path / "a.safetensors"


def test_an_equal_file_gives_the_written_tensors(path):
    written = Written(tensors(), METADATA)
    found, metadata = read_container(path, written=written)
    assert metadata == METADATA and found.keys() == written.tensors.keys()
    assert all(found[key] is written.tensors[key] for key in found)


@pytest.mark.parametrize("place", [0, 1 << 20, -1])
def test_one_bit_is_found_anywhere(path, place):
    """In the first block, in a later one, at the end of the file."""
    data = bytearray(path.read_bytes())
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    data[begin + place if place >= 0 else place] ^= 1
    path.write_bytes(data)
    with pytest.raises(MergeError, match="read back differs"):
        read_container(path, written=Written(tensors(), METADATA))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("alpha"), "has 4 tensors instead of 3"),
        (lambda t: t.update(more=torch.ones(1)), "has 4 tensors instead of 5"),
        (lambda t: t.update(other=t.pop("half")), "or others"),
        (lambda t: t.update(half=t["half"].view(torch.bfloat16)), "half read back differs"),
        (lambda t: t.update(half=t["half"].view(3, 5)), "half read back differs"),
    ],
    ids=["fewer", "more", "names", "dtype", "shape"],
)
def test_other_tensors_are_found(path, change, message):
    wanted = tensors()
    change(wanted)
    with pytest.raises(MergeError, match=message):
        read_container(path, written=Written(wanted, METADATA))


def test_other_metadata_are_found(path):
    for metadata in ({}, METADATA | {"title": "three"}, METADATA | {"more": ""}):
        with pytest.raises(MergeError, match="the metadata read back differs"):
            read_container(path, written=Written(tensors(), metadata))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_nan_and_infinity_of_either_sign_are_found(dtype):
    """And the largest finite numbers, zeros and the smallest numbers are none."""
    info = torch.finfo(dtype)
    for fine in ([1.0], [-1.0], [info.max, info.min, 0.0, -0.0, info.tiny, -info.tiny], [info.min]):
        assert is_finite(torch.tensor(fine, dtype=dtype)), fine
    for bad in ("inf", "-inf", "nan", "-nan"):
        value = torch.tensor(float(bad.lstrip("-")), dtype=dtype)
        value = torch.copysign(value, torch.tensor(-1.0 if bad[0] == "-" else 1.0, dtype=dtype))
        for rest in (1.0, -1.0, info.max, info.min):
            assert not is_finite(torch.stack((torch.tensor(rest, dtype=dtype), value))), (bad, rest)
    assert is_finite(torch.empty(0, dtype=dtype))


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_errors_of_numbers_whose_squares_float32_cannot_hold(size, make_lora):
    """The error of a truncated matrix by tiles, against the whole in float64."""
    layer = make_lora("a", shapes={"x": (300, 500)}, rank=3).layers["x"]
    generator = torch.Generator().manual_seed(1)
    exact = (layer.scale * (layer.up @ layer.down) + 0.1 * torch.randn(300, 500, generator=generator)) * size
    error, norm = truncation_error(exact.clone(), layer.scaled(size))
    rest = exact.double() - layer.scale * size * (layer.up.double() @ layer.down.double())
    assert norm == pytest.approx(float(exact.double().square().sum()), rel=1e-5)
    assert error == pytest.approx(float(rest.square().sum()), rel=1e-4)
    assert error < norm < 1.1 * product_inner((exact, torch.eye(500)), (exact, torch.eye(500)))
