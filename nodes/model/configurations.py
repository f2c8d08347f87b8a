"""Configurations that LoRA files put in place of a module's own, for the modules of ComfyUI that take them.

Versions from autumn 2026 on have such modules: a patch ``("config", (value,))`` under the key of the file
makes the patcher replace the module. Older ones know nothing of it and leave such a patch out.
"""

from __future__ import annotations

from typing import Any

from ...merge_ops.adapters.configuration import CONFIGURATION, END
from ...merge_ops.lora import Lora, WholeWeight
from ...merge_ops.merging.merged import Merged


def configurations_of(held: Lora | Merged) -> dict[str, WholeWeight]:
    """Return the configurations among the whole weights, by name."""
    return {name: weight for name, weight in held.whole_weights.items() if weight.why == CONFIGURATION}


def is_taken(weight: WholeWeight, model: Any) -> bool:
    """Return whether a model has the module of a configuration, and that module takes one."""
    try:
        module = model.get_model_object(weight.key.removesuffix(END))
    except AttributeError:
        return False
    return hasattr(module, "with_config")


def add_configurations(patcher: Any, merged: Merged, strength: float) -> None:
    """Add the configurations of a merge to a (cloned) MODEL or CLIP; at strength 0 they have no effect."""
    patches = {weight.key: ("config", (weight.value,)) for weight in configurations_of(merged).values()}
    if patches:
        patcher.add_patches(patches, strength)
