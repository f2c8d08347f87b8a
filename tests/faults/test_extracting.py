"""Extracting large models: memory of one weight, and the same bytes for every number of threads."""

import hashlib
import os

import pytest
import torch
from safetensors.torch import save_file

from tests.needs import needs_mkl

MB = 1 << 20
SIDE, LAYERS = 1024, 40

# The peak of memory of an extraction of a few directions, beyond what is there before it. Large blocks are
# given back at once: how much freed memory the C library keeps is chance.
PEAK = """
import ctypes, re, sys
ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
from pathlib import Path
import torch, merge_ops
status = lambda name: int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
torch.linalg.eigh(torch.eye(300, dtype=torch.float64))
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmHWM")
merge_ops.extract(*sys.argv[1:], rank=2)
print(status("VmHWM") - before)
"""
BYTES = """
import sys
import torch, merge_ops
torch.set_num_threads(int(sys.argv[1]))
for number, how in enumerate(({"rank": 16}, {"energy": 0.5})):
    extracted = merge_ops.extract(*sys.argv[3:], **how)
    merge_ops.save(extracted, f"{sys.argv[2]}/{number}.safetensors", dtype=torch.float32, overwrite=True)
"""


@pytest.mark.slow
def test_memory_of_one_weight(run_python, tmp_path):
    """Of models of 168 MB each: the matrices of one weight, most of them for its decomposition."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("memory is measured through /proc, which this system does not have")
    generator = torch.Generator().manual_seed(0)
    paths = []
    for name in ("tuned", "base"):
        tensors = {
            f"double_blocks.{i}.img_attn.proj.weight": torch.randn(SIDE, SIDE, generator=generator)
            for i in range(LAYERS)
        }
        paths.append(tmp_path / f"{name}.safetensors")
        save_file(tensors, paths[-1])
        del tensors
    done = run_python(PEAK, *paths)
    assert done.returncode == 0, done.stderr[-2000:]
    both = sum(path.stat().st_size for path in paths)
    assert int(done.stdout) < 16 * SIDE * SIDE * 4 < both / 2, int(done.stdout) // MB


@pytest.mark.slow
@needs_mkl
def test_the_same_bytes_on_1_2_and_3_threads(run_python, tmp_path):
    """Of a difference of low rank, found by iteration, and of a flat one, which is decomposed in full."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(700, 640, generator=generator)
    low = torch.randn(700, 4, generator=generator) @ torch.randn(4, 640, generator=generator)
    flat = torch.randn(700, 640, generator=generator)
    names = [f"double_blocks.{i}.img_attn.proj.weight" for i in range(2)]
    paths = [tmp_path / "tuned.safetensors", tmp_path / "base.safetensors"]
    save_file(dict(zip(names, (base + low, base + flat), strict=True)), paths[0])
    save_file(dict.fromkeys(names, base) | {names[1]: base.clone()}, paths[1])
    seen = set()
    for threads in (1, 2, 3):
        done = run_python(BYTES, threads, tmp_path, *paths)
        assert done.returncode == 0, done.stderr[-2000:]
        files = [tmp_path / f"{number}.safetensors" for number in range(2)]
        seen.add(tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))
    assert len(seen) == 1
