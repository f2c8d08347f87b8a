"""Merges in threads give the bits that each gives alone, and leave what all threads share as it was."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import merge_ops

REQUESTS = [
    {"method": "dare_ties", "density": 0.5, "seed": 3, "rank": 3},
    {"method": "dare_linear", "density": 0.3, "seed": 4},
    {"method": "ties", "density": 0.4, "rank": 2},
    {"combination_type": "dare_ties_svd", "density": 0.5, "seed": 5},
]


def bits(loras, request):
    merged = merge_ops.merge(loras, [0.7, 0.5], **request)
    return [merged.delta(name).contiguous().view(torch.uint8) for name in merged.layers]


@pytest.fixture(scope="module")
def loras(make_lora):
    shapes = {f"unet.down_blocks.{i}.proj_in": (96, 64) for i in range(6)}
    return [make_lora(name, shapes=shapes, rank=6, seed=seed) for seed, name in enumerate("ab")]


@pytest.mark.parametrize("at_once", [2, 4])
def test_two_merges_do_not_disturb_each_other(at_once, loras):
    """Of different methods and seeds, each more than once."""
    alone = [bits(loras, request) for request in REQUESTS]
    jobs = [i % len(REQUESTS) for i in range(4 * len(REQUESTS))]
    with ThreadPoolExecutor(at_once) as pool:
        for i, found in zip(jobs, pool.map(lambda i: bits(loras, REQUESTS[i]), jobs), strict=True):
            assert all(map(torch.equal, found, alone[i])), REQUESTS[i]


def settings():
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "numpy": np.geterr(),
    }


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: "_".join(map(str, request.values())))
def test_random_states_and_settings_stay(request_, loras, tmp_path):
    """Also by loading and saving."""
    torch.manual_seed(11)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), settings()
    merge_ops.save(merge_ops.merge(loras, **request_), tmp_path / "x.safetensors", format="diffusers")
    merge_ops.load(tmp_path / "x.safetensors")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist(), settings()) == before[1:]
