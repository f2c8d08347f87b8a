"""Fusing holds a tensor and a delta, not a model."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tests.text.models import ATTENTION, MLP

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
_MEASURED = """
import sys, threading, time
import psutil, torch
import merge_ops
from merge_ops.models import fuse
base, adapter, out = sys.argv[1:]
merged = merge_ops.merge([merge_ops.load(adapter)])
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


def test_memory_is_that_of_one_layer(tmp_path):
    """A model of 400 MB in shards of 50 MB, whose tensors have 16 MB: two of these."""
    config = LlamaConfig(
        vocab_size=512, hidden_size=2048, intermediate_size=2048, num_hidden_layers=4,
        num_attention_heads=16, num_key_value_heads=16,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base", max_shard_size="50MB")
    wrapped = get_peft_model(
        model, LoraConfig(r=8, target_modules=[*ATTENTION, *MLP], init_lora_weights=False)
    )
    wrapped.save_pretrained(tmp_path / "adapter")
    del model, wrapped
    shards = sorted((tmp_path / "base").glob("*.safetensors"))
    assert len(shards) >= 8 and sum(shard.stat().st_size for shard in shards) > 400e6
    # glibc keeps up to 64 MB of what was freed; with this it counts what is in use
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *(str(tmp_path / name) for name in ("base", "adapter", "out"))],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 2.5 * 2048 * 2048 * 4, f"{int(done.stdout) / 1e6:.0f} MB above the start"
    shutil.rmtree(tmp_path / "out")
