"""Recordings: what they hold, that a replay gives the same, and that a wrong one is refused."""

from collections import Counter

import pytest
import torch

from merge_ops import IncompatibleLoraError, LoraFormatError, MergeError, ParameterError, learning, merge
from merge_ops.demo.model import ASSETS
from merge_ops.learning.measured import squared_errors
from merge_ops.learning.plain import plain, tensors_in
from merge_ops.models.diffusers import patched
from merge_ops.models.hosts import DiffusersHost

pytestmark = pytest.mark.usefixtures("unchanged")


def test_every_call_is_kept(recording, pair):
    """Four images in three steps for each LoRA, likewise for the other prompts, and a fifth is held out."""
    roles = Counter(sample.role for sample in recording.samples)
    assert roles == {0: 12, 1: 12, "keep": 12, "together": 12}
    assert Counter(s.role for s in recording.samples if s.is_held_out) == dict.fromkeys(roles, 2)
    assert recording.labels == tuple(lora.name for lora in pair)
    assert [lora.sha256 for lora in recording.loras] == [lora.sha256 for lora in pair]
    assert all(len(tensor) == 1 for s in recording.samples for tensor in tensors_in((s.args, s.kwargs)))


@pytest.mark.parametrize("role", [0, 1, "keep", "together"])
def test_replay_gives_the_recorded_answers(recording, host, pair, role):
    """With the same LoRA in the model: these are the teachers. ``keep`` is the base, ``together`` the sum."""
    merged = {0: lambda: merge(pair[:1]), 1: lambda: merge(pair[1:]), "together": lambda: merge(pair)}
    samples = recording.part(role=role)
    with host.applied(merged[role]() if role in merged else None), torch.no_grad():
        right = squared_errors(host, samples)
    with host.applied(merge(pair, [-1, -1])), torch.no_grad():
        wrong = squared_errors(host, samples)
    assert max(right) < 1e-8 < 1e-4 < min(wrong)


def test_recorded_at_the_strength_of_the_merge(record, studio, host, pair):
    """Strength and block strengths are those of the LoRA in the merge."""
    recording = record(pair, weights=[0.5, 2.0], blocks=["up:0", None])
    with patched(studio.unet, merge(pair[:1], [0.5], blocks=["up:0"])), torch.no_grad():
        assert max(squared_errors(host, recording.part(role=0))) < 1e-8
    with patched(studio.unet, merge(pair[1:], [2.0])), torch.no_grad():
        assert max(squared_errors(host, recording.part(role=1))) < 1e-8
    assert [(each.weight, each.blocks) for each in recording.loras] == [(0.5, "up:0"), (2.0, None)]


def test_same_seed_same_recording(record, pair, recording):
    """The seed decides what is held out; nothing else does."""
    first, again, other = (record(pair, seed=seed) for seed in (3, 3, 4))
    assert first.sha256 == again.sha256 != other.sha256
    assert [s.is_held_out for s in first.samples] != [s.is_held_out for s in other.samples]


def test_budget(record, pair):
    """Where the budget is small every LoRA keeps a fair choice, at least one sample."""
    whole = record(pair)
    size = sum(sample.size for sample in whole.samples)
    half = record(pair, budget=size // 2)
    assert sum(sample.size for sample in half.samples) <= size // 2
    assert Counter(sample.role for sample in half.samples) == {0: 6, 1: 6}
    assert Counter(sample.role for sample in record(pair, budget=1).samples) == {0: 1, 1: 1}


def test_equal_tensors_are_kept_once(recording):
    """The prompt is the same in every call of a LoRA."""
    prompts = {
        id(tensors_in(s.args)[2]) for s in recording.part(role=0) + recording.part(role=0, held_out=True)
    }
    assert len(prompts) == 1


def test_zero_weight_is_left_out(record, pair):
    """As in a merge."""
    assert record(pair, weights=[0, 1]).labels == ("neon",)
    with pytest.raises(ParameterError, match="every LoRA is at weight 0"):
        record(pair, weights=[0, 0])


def test_nothing_called(host, pair):
    """Sampling that does not reach the model is a mistake of the caller."""
    with pytest.raises(MergeError, match="sampling for six called none of denoiser"):
        learning.record(host, pair, lambda lora: None)


def test_progress_can_cancel(record, pair):
    """An exception raised in the callback ends the recording."""
    seen = []

    def stop(done, total, what):
        seen.append((done, total, what))
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(pair, progress=stop)
    assert seen == [(0, 2, "six"), (1, 2, "neon")]


def test_saved_and_loaded(recording, tmp_path, host, pair):
    """A file holds all of it, each tensor once."""
    path = tmp_path / "pair.safetensors"
    learning.save_recording(recording, path)
    loaded = learning.load_recording(path)
    assert loaded.sha256 == recording.sha256 and loaded.size == recording.size
    assert path.stat().st_size < recording.size + 100_000
    assert (loaded.loras, loaded.base, loaded.seed) == (recording.loras, recording.base, recording.seed)
    merged = merge(pair)
    assert learning.retention(loaded, host, merged) == learning.retention(recording, host, merged)
    with pytest.raises(ParameterError, match="exists"):
        learning.save_recording(recording, path)
    learning.save_recording(recording, path, overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_other_files_are_refused(tmp_path, recording):
    """By name, with the reason."""
    path = tmp_path / "x.safetensors"
    learning.save_recording(recording, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(LoraFormatError, match=r"x\.safetensors: cannot be read"):
        learning.load_recording(path)
    path.write_bytes(whole.replace(b'\\"module\\"', b'\\"modul_\\"'))
    with pytest.raises(LoraFormatError, match="damaged or of a newer version"):
        learning.load_recording(path)
    with pytest.raises(LoraFormatError, match="not a recording"):
        learning.load_recording(ASSETS / "loras" / "six.safetensors")
    with pytest.raises(ParameterError, match=r"ends in \.safetensors"):
        learning.save_recording(recording, tmp_path / "x.bin")


def test_other_loras_are_refused(recording, studio, pair):
    """The recording names those that it is of; their order does not matter."""
    six, neon = pair
    assert recording.match([neon, six]) == [six, neon]
    with pytest.raises(IncompatibleLoraError, match="neon is not among the LoRAs"):
        recording.match([six, studio.loras["seven"]])
    with pytest.raises(IncompatibleLoraError, match="seven was not recorded"):
        recording.match([six, neon, studio.loras["seven"]])


def test_other_base_is_refused(recording, studio, pair):
    """A base with one weight changed in a place that the fingerprint reads."""
    weight = next(studio.unet.parameters())
    kept = weight.flatten()[0].clone()
    with torch.no_grad():
        weight.view(-1)[0] += 1
    try:
        with pytest.raises(IncompatibleLoraError, match="another base model"):
            learning.retention(recording, DiffusersHost(studio.unet), merge(pair))
    finally:
        with torch.no_grad():
            weight.view(-1)[0] = kept


def test_plain_data():
    """Only what a file can hold is kept of a call's inputs; the places of arguments stay."""
    tensor = torch.ones(2)
    given = (tensor, len, {"a": [1, "x", None], "f": print, "t": (2.5, object)})
    assert plain(given) == (tensor, None, {"a": [1, "x", None], "t": (2.5, None)})
