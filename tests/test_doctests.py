"""The examples in the docstrings of the functions that are used most."""

import doctest
import inspect
from typing import Annotated

import pytest
import torch

import merge_ops
from merge_ops.blocks import block_strengths

NAMES = [f"unet.mid_block.attentions.0.proj_{way}" for way in ("in", "out")]
EXAMPLES = {
    "load": merge_ops.load,
    "merge": merge_ops.merge,
    "save": merge_ops.save,
    "Merged.delta": merge_ops.Merged.delta,
    "Merged.factors": merge_ops.Merged.factors,
    "Merged.report": merge_ops.Merged.report,
    "read_recipe": merge_ops.read_recipe,
    "find_sources": merge_ops.find_sources,
    "merge_method": merge_ops.merge_method,
    "block_strengths": block_strengths,
}


@pytest.fixture
def files(make_lora, tmp_path, monkeypatch):
    """Two LoRAs and a saved merge of them in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("ink", "mia")):
        lora = make_lora(name, shapes=dict.fromkeys(NAMES, (6, 8)), seed=seed)
        merge_ops.save(merge_ops.merge([lora]), f"{name}.safetensors", dtype=torch.float32)
    loras = [merge_ops.load("ink.safetensors"), merge_ops.load("mia.safetensors")]
    merged = merge_ops.merge(loras, [0.7, 0.3], "ties", density=0.5)
    merge_ops.save(merged, "both.safetensors")
    return {"loras": loras, "merged": merged}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name, files):
    """Each has one, and it prints what it says; ``merge_ops``, ``loras`` and ``merged`` are given."""
    before = dict(merge_ops.METHODS)
    text = inspect.cleandoc(EXAMPLES[name].__doc__)
    given = {"merge_ops": merge_ops, "torch": torch, "Annotated": Annotated, **files}
    given |= {"merge_method": merge_ops.merge_method, "Param": merge_ops.Param}
    example = doctest.DocTestParser().get_doctest(text, given, name, None, 0)
    assert example.examples, f"{name} has no example"
    printed = []
    results = doctest.DocTestRunner(verbose=False).run(example, out=printed.append)
    for added in merge_ops.METHODS.keys() - before:
        del merge_ops.METHODS[added]
    assert not results.failed, "".join(printed)
