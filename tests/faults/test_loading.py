"""Loading believes no header, unpickles nothing, and is not disturbed by who writes the file meanwhile."""

import json
import os
import struct
import threading

import pytest
import torch
from safetensors.torch import load_file, save, save_file

import merge_ops
from merge_ops import LoraFormatError
from merge_ops.formats import container

STEM = "lora_unet_mid_block_attentions_0_proj_in"
MB = 1 << 20


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def container_of(header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


HUGE = 2**42
NOTHING = json.dumps(entry([0], 0, 0)).encode()
MANY = b",".join(b'"%x":%s' % (i, NOTHING) for i in range(MB))
UP, DOWN = f"{STEM}.lora_up.weight", f"{STEM}.lora_down.weight"
CLAIMS = {
    "terabytes": (container_of({UP: entry([HUGE // 4], 0, HUGE)}, b"1234"), "is cut off"),
    "terabytes in no bytes": (container_of({UP: entry([HUGE], 0, 4)}, b"1234"), "not a valid"),
    "a side of zero": (container_of({UP: entry([0, HUGE], 0, 0), DOWN: entry([HUGE, 0], 0, 0)}), "not fit"),
    "many sides": (container_of({UP: entry([2**62] * 60 + [0], 0, 0)}), "not a valid"),
    "endless header": (struct.pack("<Q", HUGE) + b"{}", "header needs"),
    "lists": (container_of(b'{"a":' + b"[]," * 10 * MB + b"0}"), "header cannot be read"),
    "objects": (container_of(b'{"a":[' + b'{"b":0},' * 4 * MB + b"0]}"), "header cannot be read"),
    "metadata of lists": (container_of(b'{"__metadata__":{"a":[' + b"[]," * 10 * MB + b"0]}}"), "header"),
    "many tensors": (container_of(b"{%s}" % MANY), "more than 100000 tensors"),
    "much metadata": (
        container_of(b'{"__metadata__":{' + b"".join(b'"%x":"",' % i for i in range(3 * MB)) + b'"a":""}}'),
        "more than 100000 entries of metadata",
    ),
}  # fmt: skip


@pytest.mark.slow
def test_no_header_is_believed(tmp_path, peaks_of):
    """Memory stays below three times the file, whatever its header claims."""
    paths = [tmp_path / f"{claim}.safetensors" for claim in CLAIMS]
    for path, (raw, _) in zip(paths, CLAIMS.values(), strict=True):
        path.write_bytes(raw)
    for path, (raw, message), (peak, said) in zip(paths, CLAIMS.values(), peaks_of(*paths), strict=True):
        assert path.name in said
        assert message in said
        assert peak < 3 * len(raw) + 64 * MB, (path.name, peak)


@pytest.mark.slow
def test_a_file_larger_than_memory(tmp_path, peaks_of):
    """A sparse one, which really has the size that it claims: a sentence, and no crash."""
    header = container_of({UP: entry([2**38], 0, 2**40), DOWN: entry([2], 2**40, 2**40 + 8)})
    path = tmp_path / "x.safetensors"
    path.write_bytes(header)
    try:
        os.truncate(path, len(header) + 2**40 + 8)
    except OSError:
        pytest.skip("the file system holds no file of a terabyte")
    ((peak, said),) = peaks_of(path)
    assert "x.safetensors: the file does not fit into memory" in said
    assert peak < 24 * MB


@pytest.mark.slow
def test_one_copy_is_held(tmp_path, peaks_of):
    """The peak of loading 84 MB is one copy and the largest tensor of it."""
    tensors = {}
    for i in range(700):
        stem = f"lora_unet_down_blocks_0_attentions_{i}_proj_in"
        tensors |= {f"{stem}.lora_up.weight": torch.ones(1880, 16).half()}
        tensors |= {f"{stem}.lora_down.weight": torch.ones(16, 1880).half()}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    ((peak, said),) = peaks_of(path)
    assert said == "700"
    assert peak < 1.15 * path.stat().st_size


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.ckpt", "x.pth", "x.pkl", "x.safetensors", "x.sft", "x"])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_unpickled(name, zipped, tmp_path):
    path = tmp_path / name
    torch.save({UP: Trap(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(LoraFormatError, match=f"^{name}: this is a pickle"):
        merge_ops.load(path)
    (tmp_path / "adapter").mkdir()
    path.rename(tmp_path / "adapter" / "adapter_model.bin")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(LoraFormatError, match="is a pickle"):
        merge_ops.load(tmp_path / "adapter")
    assert not (tmp_path / "ran").exists()


def lora_file(path, value=1.0, size=256):
    save_file({UP: torch.full((size, 2), value), DOWN: torch.full((2, size), value)}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("how", ["overwritten", "cut off", "removed"])
def test_a_loaded_lora_keeps_its_numbers(how, tmp_path, run_python):
    """In a process of its own: with mapped tensors, cutting the file off ends it by SIGBUS."""
    path = lora_file(tmp_path / "x.safetensors", size=100_000)
    script = """
import os, sys, merge_ops
lora = merge_ops.load(sys.argv[1])
if sys.argv[2] == "overwritten":
    with open(sys.argv[1], "r+b") as file:
        file.seek(300)
        file.write(bytes(os.path.getsize(sys.argv[1]) - 300))
elif sys.argv[2] == "cut off":
    os.truncate(sys.argv[1], 10)
else:
    os.unlink(sys.argv[1])
layer, = lora.layers.values()
print(float(layer.up.sum()), float(layer.down.sum()))
"""
    done = run_python(script, path, how)
    assert (done.returncode, done.stdout.strip()) == (0, "200000.0 200000.0"), done.stderr[-2000:]


@pytest.mark.parametrize("how", ["written", "cut off", "grown"])
def test_a_file_that_changes_while_it_is_read(how, tmp_path, monkeypatch):
    """The change is made before or after the data is read; the reading itself is the real one."""
    path, read = lora_file(tmp_path / "x.safetensors"), container._read_data
    size = path.stat().st_size

    def meddle(file, length):
        if how == "written":
            data = read(file, length)
            os.utime(path, ns=(1, 1))
            return data
        os.truncate(path, size + (3 if how == "grown" else -1500))
        return read(file, length)

    monkeypatch.setattr(container, "_read_data", meddle)
    with pytest.raises(LoraFormatError, match=r"x.safetensors: the file changed while it was read; wait"):
        merge_ops.load(path)


def test_a_file_that_is_written_all_the_time(tmp_path):
    """By a thread that replaces and rewrites it: each load gives one whole version or a sentence."""
    path, stop, kept, tries = tmp_path / "x.safetensors", threading.Event(), 0, 0
    contents = [lora_file(tmp_path / f"{i}", float(i), 3000).read_bytes() for i in (1, 2)]
    path.write_bytes(contents[0])

    def rewrite():
        turn = 0
        while not stop.is_set():
            turn += 1
            if turn % 3:
                path.write_bytes(contents[turn % 2])
            else:
                (tmp_path / "new").write_bytes(contents[turn % 2])
                (tmp_path / "new").replace(path)
                stop.wait(0.002)  # long enough for a load, so that some come through

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        while tries < 300 or not kept:
            tries += 1
            assert tries < 100_000, "no load came through"
            try:
                tensors, _ = container.read_container(path)
            except LoraFormatError as error:
                assert "x.safetensors" in str(error)
                continue
            kept += 1
            assert {tensors[UP].unique().numel(), tensors[DOWN].unique().numel()} == {1}
    finally:
        stop.set()
        writer.join()


def test_what_cannot_be_opened(tmp_path):
    """A folder in the way, a name that no system has, a pipe that nobody writes to."""
    (tmp_path / "x.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("x.safetensors", "nul\0.safetensors", "pipe.safetensors"):
        with pytest.raises(LoraFormatError):
            merge_ops.load(tmp_path / name)


def test_tensors_are_those_of_safetensors(tmp_path):
    """Every type, scalars, empty ones, and data that is not aligned."""
    types = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
    ]
    types += [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2]
    tensors = {f"t{i}": torch.arange(6).reshape(2, 3).to(dtype) for i, dtype in enumerate(types)}
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.ones(0, 4)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(tensors, {"a": "\u20ac", "b": ""}))
    ours, metadata = container.read_container(path)
    theirs = load_file(path)
    assert metadata == {"a": "\u20ac", "b": ""}
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(ours[name].to(torch.complex128), tensor.to(torch.complex128))
    odd = {"a": entry([1], 0, 1, "U8"), "b": entry([2], 1, 9)}
    path.write_bytes(container_of(odd, b"\7" + struct.pack("<2f", 1.5, -2.0)))
    assert container.read_container(path)[0]["b"].tolist() == [1.5, -2.0]
