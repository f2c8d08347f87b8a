"""Switching a text model between merges: ``python -m benchmarks.switching [--layers N] [--dtype NAME]``.

The model has the shape of SmolLM-135M and random weights, with adapters of rank 8 and 16 on all its linear
layers. A switch means leaving one request of the pool and entering another.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from merge_ops.models.transformers import AdapterPool

_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_RANKS = {"a": 8, "b": 8, "wide": 16}
REQUESTS = [
    {"ids": ["a", "b"], "weights": [0.7, 0.3], "space": "delta"},
    {"ids": ["a", "b"], "weights": [1.0, 1.0], "merge_strategy": "ties", "density": 0.5},
    {
        "ids": ["a", "wide"],
        "weights": [1, -1],
        "merge_strategy": "dare_ties",
        "density": 0.5,
        "space": "delta",
    },
]


def make_model(layers: int, dtype: torch.dtype) -> LlamaForCausalLM:
    """Make a model with SmolLM-135M's shape; 30 layers have 134.5 million weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


def fill(pool: AdapterPool, layers: int) -> None:
    """Add adapters written by PEFT to the pool."""
    with tempfile.TemporaryDirectory() as folder:
        for seed, (name, rank) in enumerate(_RANKS.items()):
            torch.manual_seed(seed)
            config = LoraConfig(r=rank, target_modules=_LINEAR, init_lora_weights=False)
            place = Path(folder, name)
            get_peft_model(make_model(layers, torch.float32), config).save_pretrained(place)
            pool.add(name, place)


def switches(pool: AdapterPool, repeats: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each first request, which merges, and of later switches, which swap weights."""
    first, later = [], []
    for round_ in range(repeats + 1):
        for request in REQUESTS:
            begin = time.perf_counter()
            with pool.merged(request):
                (later if round_ else first).append(time.perf_counter() - begin)
    return first, later


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.switching", description=__doc__)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    model = make_model(options.layers, getattr(torch, options.dtype))
    pool = AdapterPool(model)
    fill(pool, options.layers)
    first, later = switches(pool, 20)
    count = sum(weight.numel() for weight in dict.fromkeys(model.parameters()))
    lines = [f"{count / 1e6:.1f} million weights in {options.dtype}, {torch.get_num_threads()} threads"]
    for request, seconds in zip(REQUESTS, first, strict=True):
        lines.append(f"  first request, {request.get('merge_strategy', 'linear')}: {seconds:.2f} s")
    lines.append(f"  switch between cached requests: median {median(later) * 1e3:.1f} ms, "
                 f"longest {max(later) * 1e3:.1f} ms")  # fmt: skip
    lines.append(f"  cache: {pool.cached_merges} merges, {pool.cached_bytes / 1e6:.0f} MB")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
