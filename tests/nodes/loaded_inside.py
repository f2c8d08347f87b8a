"""Merging what other loaders put on MODEL and CLIP, for the checks of it."""

from contextlib import contextmanager
from types import SimpleNamespace

import comfy.hooks
import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
import comfy.weight_adapter
from checks_based import write_based
from checks_kinds import write_kinds
from comfy_inside import (
    LORAS,
    NODES,
    run,
    text_of,
    write_lora,
)

TIES = {"method": "ties", "density": 0.3}


@contextmanager
def workflow_of(rows):
    """The node in a workflow whose loader names these files."""
    names = {f"lora_{i}": {"on": True, "lora": name} for i, (name, *_) in enumerate(rows)}
    workflow = {"1": {"inputs": names}, "2": {"inputs": {"model": ["1", 0]}}}
    node = NODES["LoraAlloyMergeLoaded"]
    before = node.hidden
    node.hidden = SimpleNamespace(prompt=workflow, unique_id="2")
    try:
        yield
    finally:
        node.hidden = before


def merged(model, clip=None, rows=(), method=TIES, **more):
    """Merge what is loaded, in a workflow that names the files of ``rows``."""
    with workflow_of(rows):
        return run("LoraAlloyMergeLoaded", model=model, clip=clip, method=method, **more)


def listed(rows, model, clip=None, method=TIES, **more):
    """Load & Merge of the same list."""
    return run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method=method, **more)


def state_of(file):
    return comfy.utils.load_torch_file(str(LORAS / file), safe_load=True)


def mixed_rows(model_name):
    """A plain LoRA, one of LoHa, LoKr and differences, and one of DoRA, GLoRA, OFT and BOFT."""
    return [
        (write_lora("plain", model_name, 4, 2, 1), 0.7, 0.4),
        (write_kinds("kinds", model_name, 2), -0.6, 0.9),
        (write_based("based", model_name, 3), 1.0, 0.0),
    ]
