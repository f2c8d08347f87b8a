"""What ComfyUI does not promise to keep of its hooks.

As in ``core.py``, each thing has one function here, and a check in ``tests/nodes/checks_core_hooks.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def add_hook_patches(patcher: Any, hook: Any, patches: Mapping[Any, Any], strength: float) -> None:
    """Add patches to a ModelPatcher for where a hook is on, at a strength that the hook's own multiplies."""
    patcher.add_hook_patches(hook=hook, patches=patches, strength_patch=strength)


def takes_hooks(patcher: Any) -> bool:
    """Return whether hooks can change the weights of a ModelPatcher: not where some are quantised."""
    try:
        patcher.get_key_patches()
    except AttributeError:  # a key of the state dict that is no weight
        return False
    return True


def list_conditions(executor: Any) -> list[dict[str, Any]]:
    """Return the conditions of a sampling, which are copies for it, from a wrapper around its outer part."""
    return [condition for kind in executor.class_obj.conds.values() for condition in kind]
