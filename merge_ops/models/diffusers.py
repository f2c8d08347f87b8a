"""Adding a merge to a diffusers model or pipeline.

    with patched(pipe, merged):
        image = pipe("a fox").images[0]

No weight file is read; stock diffusers does everything else.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import IncompatibleLoraError
from ..merging.merged import Merged
from ..names.parts import OTHER_DENOISERS, flat_name
from ..names.prefixes import strip_wrappers
from ..names.spelling import DOTTED_COMPONENTS
from .applied import AppliedMerge, FindModule
from .modules import Modules

# parts of pipelines that have one spelling only
_OTHERS = (*OTHER_DENOISERS, "connectors", "text_conditioner")


def patched(target: Any, merged: Merged, strength: float = 1.0) -> AppliedMerge:
    """Add ``strength * merged`` to the weights of ``target``, in place.

    Args:
        target: a diffusers pipeline (its UNet or transformer and its text encoders are changed), or a single
            UNet, transformer or text encoder.
        merged: what ``merge_ops.merge`` returned.
        strength: multiplies the merge.

    Returns:
        An ``AppliedMerge``: a context manager that restores the weights on exit. Its ``replace`` switches to
        another merge, and ``restore`` takes the merge out.

    Raises:
        IncompatibleLoraError: if no layer fits, or if shapes differ.
    """
    return AppliedMerge(finder(target), merged, strength)


def components(target: Any) -> dict[str, nn.Module]:
    """Return the models of a target by the component that layer names begin with."""
    parts = getattr(target, "components", None)
    if isinstance(parts, dict):
        return {name: part for name, part in parts.items() if name in DOTTED_COMPONENTS and part is not None}
    if not isinstance(target, nn.Module):
        raise IncompatibleLoraError(f"a {type(target).__name__} is neither a diffusers pipeline nor a model")
    kind = type(getattr(target, "_orig_mod", target)).__name__  # torch.compile hides the class
    if "UNet" in kind:
        return {"unet": target}
    if kind == "CLIPTextModelWithProjection":
        return {"text_encoder_2": target}
    if "Transformer" in kind:
        return {"transformer": target}
    return {"text_encoder": target}


def finder(target: Any) -> FindModule:
    """Return a function that maps a layer name to its module, or to None if the target has none."""
    modules = {
        name: {strip_wrappers(path): module for path, module in component.named_modules()}
        for name, component in components(target).items()
    }
    # layers of a text model outside a pipeline are named by their module paths
    elsewhere = Modules(target).find if isinstance(target, nn.Module) else lambda _: None
    denoiser = modules.get("transformer") or modules.get("unet") or {}
    flat = {flat_name(f"unet.{path}"): module for path, module in denoiser.items()}

    def find(layer: str) -> nn.Module | None:
        component, _, path = layer.partition(".")
        if component in modules and component in _OTHERS:
            return modules[component].get(path)
        if not component.startswith("text_encoder"):
            return flat.get(flat_name(layer)) or elsewhere(layer)
        own = modules.get(component, {})
        # transformers 5 dropped the level "text_model" that older versions and all files have
        module = own.get(path) or own.get(path.removeprefix("text_model."))
        return module or elsewhere(layer)

    return find
