"""Layers on all cores: in order, with the bits of one thread, in the caller's mode, and ended when asked."""

import threading
from contextlib import closing

import pytest
import torch

from merge_ops import merge
from merge_ops.merging import threads
from merge_ops.merging.scratch import Scratch
from merge_ops.merging.threads import on_all_cores
from merge_ops.steady import one_core
from tests.needs import needs_mkl

SHAPES = {f"layer.{i}": (60 + i, 40) for i in range(12)}
HAS_OPENMP = torch.backends.openmp.is_available()


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def done(work, items, largest=1):
    with closing(on_all_cores(work, items, largest, Scratch())) as results:
        return list(results)


@pytest.mark.usefixtures("three_threads")
def test_results_come_in_order_from_several_threads():
    """Three items are under way at once, each with memory of its own that its thread keeps."""
    together, used = threading.Barrier(3, timeout=60), {}

    def work(item, scratch):
        together.wait()
        used.setdefault(threading.get_ident(), set()).add(id(scratch))
        return item * item

    assert done(work, list(range(12))) == [i * i for i in range(12)]
    assert len(used) == 3 and all(len(scratches) == 1 for scratches in used.values())
    assert len(set.union(*used.values())) == 3


@pytest.mark.usefixtures("three_threads")
def test_deltas_of_all_threads_are_bounded(monkeypatch):
    """Layers too large for three at a time are worked on by two, or by the caller alone."""
    monkeypatch.setattr(threads, "_ENTRIES", 1000)
    for largest, count in ((300, 3), (500, 2), (501, 1), (5000, 1)):
        seen = set()
        gate = threading.Barrier(count, timeout=60)

        def work(_, scratch, seen=seen, gate=gate):
            gate.wait()
            seen.add(threading.get_ident())
            return scratch.sparing

        done(work, range(6), largest)
        assert len(seen) == count
        assert (threading.get_ident() in seen) == (count == 1)


@pytest.mark.usefixtures("three_threads")
def test_an_error_comes_through_and_the_rest_is_left_undone():
    begun = []

    def work(item, _):
        begun.append(item)
        if item == 0:
            raise ZeroDivisionError
        threading.Event().wait(0.05)

    with pytest.raises(ZeroDivisionError):
        done(work, range(1000))
    assert len(begun) < 100


@pytest.mark.usefixtures("three_threads")
def test_progress_can_end_a_merge(make_lora):
    """The exception of a caller who has had enough reaches the caller, and no thread goes on."""
    loras = [make_lora(name, shapes=SHAPES, seed=i) for i, name in enumerate("ab")]
    before = threading.active_count()

    def progress(count, _total, _layer):
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(loras, [1.0, 0.5], "ties", rank=4, progress=progress)
    assert threading.active_count() == before


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_threads_follow_the_callers_mode(mode):
    with mode():
        here = (torch.is_inference_mode_enabled(), torch.is_grad_enabled())
        for found in done(lambda *_: (torch.is_inference_mode_enabled(), torch.is_grad_enabled()), range(6)):
            assert found == here


@pytest.mark.skipif(not HAS_OPENMP, reason="torch is built without OpenMP")
@pytest.mark.usefixtures("three_threads")
def test_a_thread_of_many_uses_one_core_and_the_caller_keeps_all():
    assert done(lambda *_: torch.get_num_threads(), range(6)) == [1] * 6
    with one_core():
        assert torch.get_num_threads() == 1
        seen = []
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert seen == [3] and torch.get_num_threads() == 3


@needs_mkl
@pytest.mark.parametrize(
    "how",
    [
        {"method": "ties"}, {"method": "dare_ties", "rank": 4}, {"method": "linear", "rank": 4},
        {"method": "ties", "space": "factors"}, {"method": "tsv"}, {"method": "della", "rank": 3},
    ],
    ids=str,
)  # fmt: skip
def test_merges_have_the_bits_of_one_thread(make_lora, how):
    """Also what is measured on the LoRAs, and in inference mode."""
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for mode in (torch.no_grad, torch.inference_mode):
                loras = [make_lora(name, shapes=SHAPES, seed=i) for i, name in enumerate("abc")]
                with mode():
                    merged = merge(loras, [1.0, 0.5, -0.3], **how)
                    found.append([merged.delta(name).clone() for name in merged.layers])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))
