"""Adding a merge to a diffusers model or pipeline.

    with patched(pipe, merged):
        image = pipe("a fox").images[0]

No weight file is read, and stock diffusers does everything else.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import IncompatibleLoraError
from ..merging.merged import Merged
from ..names.parts import flat_name
from ..names.spelling import DOTTED_COMPONENTS
from .exchange import Modules
from .weights import FindModule, Patch


def patched(target: Any, merged: Merged, strength: float = 1.0) -> Patch:
    """Add ``strength * merged`` to the weights of ``target``, in place.

    Args:
        target: a diffusers pipeline (UNet or transformer and text encoders are patched), or one model of
            it: a UNet, a transformer, or a text encoder.
        merged: what ``merge_ops.merge`` returned.
        strength: multiplies the merge.

    Returns:
        A ``Patch``: a context manager that restores the weights at its end; ``replace`` switches to another
        merge, ``restore`` takes it out.

    Raises:
        IncompatibleLoraError: if no layer fits, or shapes disagree.
    """
    return Patch(finder(target), merged, strength)


def _components(target: Any) -> dict[str, nn.Module]:
    """The models of a target by the component names of layer names."""
    parts = getattr(target, "components", None)
    if isinstance(parts, dict):
        return {name: part for name, part in parts.items() if name in DOTTED_COMPONENTS and part is not None}
    if not isinstance(target, nn.Module):
        raise IncompatibleLoraError(f"a {type(target).__name__} is neither a diffusers pipeline nor a model")
    kind = type(target).__name__
    if "UNet" in kind:
        return {"unet": target}
    if kind == "CLIPTextModelWithProjection":
        return {"text_encoder_2": target}
    if "Transformer" in kind:
        return {"transformer": target}
    return {"text_encoder": target}


def finder(target: Any) -> FindModule:
    """A function from a layer's name to its module in a pipeline or model; None where there is none."""
    modules = {name: dict(component.named_modules()) for name, component in _components(target).items()}
    # layers of a text model that is no part of a pipeline are named by their paths in it
    elsewhere = Modules(target).find if isinstance(target, nn.Module) else lambda _: None
    denoiser = modules.get("transformer") or modules.get("unet") or {}
    flat = {flat_name(f"unet.{path}"): module for path, module in denoiser.items()}

    def find(layer: str) -> nn.Module | None:
        component, _, path = layer.partition(".")
        if not component.startswith("text_encoder"):
            return flat.get(flat_name(layer)) or elsewhere(layer)
        own = modules.get(component, {})
        # transformers 5 dropped the level "text_model" that older versions and all files have
        found = own.get(path) or own.get(path.removeprefix("text_model."))
        return found or elsewhere(layer)

    return find
