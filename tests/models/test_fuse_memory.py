"""Fusing into a single file holds a tensor and a delta, not a model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.models.checkpoints import lora_tensors, write

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WIDTH = 2048
_MEASURED = """
import sys, threading
import psutil, torch
import merge_ops
from merge_ops.models import fuse
base, lora, out = sys.argv[1:]
merged = merge_ops.merge([merge_ops.load(lora), merge_ops.load(lora)])
merged.delta(next(iter(merged.layers)))
process, peak, done = psutil.Process(), [0], threading.Event()
before = process.memory_info().rss
def watch():
    while not done.wait(0.001):
        peak[0] = max(peak[0], process.memory_info().rss)
threading.Thread(target=watch).start()
fuse(base, merged, out)
done.set()
print(peak[0] - before)
"""


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn], ids=["fp16", "scaled fp8"])
def test_memory_is_that_of_one_tensor(dtype, tmp_path):
    """40 tensors whose float32 form has 16 MB: less than four of these."""
    names = [f"blocks.{i}.self_attn.q" for i in range(40)]
    tensors = {f"{name}.weight": torch.randn(WIDTH, WIDTH).to(dtype) for name in names}
    if dtype.itemsize == 1:
        tensors |= {f"{name}.weight_scale": torch.tensor(0.5) for name in names}
    save_file(tensors, tmp_path / "base.safetensors")
    size = (tmp_path / "base.safetensors").stat().st_size
    del tensors
    stems = {f"diffusion_model.{name}": (WIDTH, WIDTH) for name in names}
    write(tmp_path / "lora.safetensors", lora_tensors(stems, rank=4))
    # glibc keeps up to 64 MB of what was freed; with this it counts what is in use
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "1000000"}
    files = [str(tmp_path / f"{name}.safetensors") for name in ("base", "lora", "out")]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *files],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    one = WIDTH * WIDTH * 4
    assert int(done.stdout) < 3.5 * one < size, f"{int(done.stdout) / 1e6:.0f} MB above the start"
    (tmp_path / "out.safetensors").unlink()
