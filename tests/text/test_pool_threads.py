"""A pool in use by several threads: each sees its own merge, nobody waits for ever."""

import threading
import time

import pytest
import torch

from merge_ops import MergeError
from tests.text.models import logits

LORAX = {"ids": ["a", "b"], "weights": [0.5, -1], "merge_strategy": "ties", "density": 0.25}
OURS = {"recipe": 1, "sources": [{"name": "a", "weight": 0.7}, {"name": "c"}], "method": "linear"}


def test_blocks_are_not_nested(pool):
    """A thread that waits for itself would wait for ever."""
    with pool.merged(LORAX), pytest.raises(MergeError, match="inside a merged request"), pool.merged(OURS):
        pytest.fail("the block ran")
    with pool.merged(OURS):
        pass


def test_threads_see_their_own_merge(pool, model):
    """Eight threads, three requests, merges dropped and made again: a block sees its own logits."""
    requests = [LORAX, OURS, {"ids": ["c"], "weights": [2.0]}]
    wanted = []
    for request_ in requests:
        with pool.merged(request_):
            wanted.append(logits(model))
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    wrong, ran = [], []
    pool.cache_bytes = int(pool.cached_bytes * 0.7)  # so that merges are dropped and made again

    def work(number):
        for i in range(12):
            chosen = (number + i) % 3
            with pool.merged(requests[chosen]):
                found = logits(model)
                time.sleep(0.001)
                if not (
                    torch.equal(found, logits(model)) and torch.allclose(found, wanted[chosen], atol=1e-4)
                ):
                    wrong.append((number, i))
            ran.append(chosen)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=600)
    assert not wrong and len(ran) == 96
    assert all(torch.equal(weight, before[key]) for key, weight in model.state_dict().items())


def test_the_same_request_is_shared_and_nobody_starves(pool):
    """Two threads are inside at once; a third with another merge comes before a fourth with the first one."""
    order, both = [], threading.Barrier(3, timeout=600)
    leave = threading.Event()

    def first():
        with pool.merged(LORAX):
            both.wait()
            leave.wait(600)
            order.append("shared")

    def later(request_, name):
        with pool.merged(request_):
            order.append(name)

    threads = [threading.Thread(target=first) for _ in range(2)]
    threads += [threading.Thread(target=later, args=args) for args in ((OURS, "other"), (LORAX, "again"))]
    with pool.merged(OURS):
        pass  # cached, so that the order below is that of starting
    for thread in threads[:2]:
        thread.start()
    both.wait()
    for waiting, thread in enumerate(threads[2:], 1):
        thread.start()
        while thread.is_alive() and len(pool._turns._queue) < waiting:  # nothing public shows who waits
            time.sleep(0.001)
    assert order == []
    leave.set()
    for thread in threads:
        thread.join(timeout=600)
    assert order == ["shared", "shared", "other", "again"]


def test_an_adapter_removed_during_a_request(pool, model):
    """The request finishes with it, and what it merged is not kept."""
    inside, go_on = threading.Event(), threading.Event()
    found = []

    def work():
        with pool.merged(LORAX):
            inside.set()
            go_on.wait(600)
            found.append(logits(model))

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(600)
    pool.remove("a")
    go_on.set()
    thread.join(timeout=600)
    assert len(found) == 1 and pool.cached_merges == 0
    assert not torch.allclose(found[0], logits(model), atol=1e-2)
