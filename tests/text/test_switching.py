"""Switching between cached merges costs no computation: a model of 135 million weights, all linear layers."""

import time
from statistics import median

import pytest
import torch

from benchmarks.switching import REQUESTS, fill, make_model
from merge_ops.models.transformers import AdapterPool

pytestmark = pytest.mark.slow


def test_a_switch_takes_milliseconds():
    """Two merges of rank 8 and 16 on SmolLM's shape, full depth, in bfloat16; the goal is 200 ms."""
    pool = AdapterPool(make_model(30, torch.bfloat16))
    fill(pool, 30)
    requests = [REQUESTS[0], {"ids": ["wide"], "weights": [0.5]}]
    spent = []
    for i in range(12):
        begin = time.process_time()
        with pool.merged(requests[i % 2]):
            spent.append(time.process_time() - begin)
    assert pool.cached_merges == 2 and pool.cached_bytes > 400e6
    assert median(spent[2:]) < 0.2
