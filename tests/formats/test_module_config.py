"""Keys that replace a module's configuration, which newer versions of ComfyUI read: passed on whole."""

import json

import pytest
import torch
from safetensors.torch import load_file

import merge_ops
from merge_ops.errors import IncompatibleLoraError, LoraFormatError, MergeError

MODULE = "diffusion_model.transformer_blocks.0.attn1"
KEY = f"{MODULE}.config"


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def as_bytes(settings, **layout):
    return torch.tensor(list(json.dumps(settings, **layout).encode()), dtype=torch.uint8)


@pytest.fixture
def made(write):
    """Writes a LoRA with a configuration of a module, and loads it."""

    def make(name, settings=None, **layout):
        tensors = {f"{MODULE}.to_q.lora_A.weight": draw(4, 12), f"{MODULE}.to_q.lora_B.weight": draw(10, 4)}
        if settings is not None:
            tensors[KEY] = as_bytes(settings, **layout)
        return merge_ops.load(write(tensors, None, f"{name}.safetensors"))

    return make


@pytest.mark.parametrize("form", ["auto", "kohya", "diffusers"])
def test_a_configuration_is_passed_on_whole(form, made, tmp_path):
    """Under the key by which ComfyUI finds the module, whatever the format, and not scaled by the weight."""
    merged = merge_ops.merge([made("a", {"window": 3}), made("b")], [0.5, 2.0])
    assert any(row.name == KEY and row.status == "passed" for row in merged.report.layers)
    merge_ops.save(merged, tmp_path / "out.safetensors", format=form)
    assert torch.equal(load_file(tmp_path / "out.safetensors")[KEY], as_bytes({"window": 3}))
    again = merge_ops.load(tmp_path / "out.safetensors")
    assert list(again.whole_weights) == [KEY]


def test_sources_that_say_the_same_agree(made, tmp_path):
    """However their JSON is laid out."""
    loras = [made("a", {"window": 3, "heads": 2}), made("b", {"heads": 2, "window": 3}, indent=1)]
    merge_ops.save(merge_ops.merge(loras), tmp_path / "out.safetensors")
    assert torch.equal(load_file(tmp_path / "out.safetensors")[KEY], as_bytes({"window": 3, "heads": 2}))


def test_a_conflict_needs_keep(made, tmp_path):
    loras = [made("a", {"window": 3}), made("b", {"window": 5})]
    with pytest.raises(IncompatibleLoraError, match=r"a and b .*config.*settings differ.*keep='a'"):
        merge_ops.merge(loras)
    merge_ops.save(merge_ops.merge(loras, keep="b"), tmp_path / "out.safetensors")
    assert torch.equal(load_file(tmp_path / "out.safetensors")[KEY], as_bytes({"window": 5}))


@pytest.mark.parametrize(
    "value", [draw(4), torch.ones(2, 2, dtype=torch.uint8), torch.ones(3, dtype=torch.int8)]
)
def test_what_is_no_configuration_is_refused(value, write):
    with pytest.raises(LoraFormatError, match=r"^some\.safetensors: .*config is torch.*uint8"):
        merge_ops.load(write({KEY: value}))


def test_formats_that_cannot_hold_it(write, tmp_path):
    stem = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{stem}.lora_A.weight": draw(4, 12), f"{stem}.lora_B.weight": draw(10, 4)}
    lora = merge_ops.load(write(tensors | {"transformer.transformer_blocks.0.config": as_bytes({})}))
    for form, path in (("diffusers", "x.safetensors"), ("peft", "x")):
        with pytest.raises(MergeError, match=r"config.*use format='kohya'"):
            merge_ops.save(merge_ops.merge([lora]), tmp_path / path, format=form)
