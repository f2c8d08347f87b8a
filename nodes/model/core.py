"""Everything inside ComfyUI that the nodes rely on and that it does not promise to keep.

Each has one function here and is used nowhere else in ``nodes``. For each there is a check in
``tests/nodes/checks_core_*.py``, which fails by its name when ComfyUI moves it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd1_clip
import torch
from torch import Tensor, nn

_RATIO = 8  # pixels of an entry of a latent, for formats that do not say
_METADATA = "lora_metadata"  # what Load LoRA attaches, and Get IC-LoRA Parameters reads


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight of a model without patches, as it is stored, and how ComfyUI makes numbers of it."""

    weight: Tensor
    convert: Callable[..., Tensor] | None = None  # dequantises, for modules that can
    module: nn.Module | None = None  # None for a bare parameter of the whole model


def patcher_of(part: Any) -> Any:
    """Return the ModelPatcher of a MODEL, which is one, or of a CLIP."""
    return getattr(part, "patcher", part)


def diffusion_model(model: Any) -> nn.Module:
    """Return the module of a MODEL that predicts the noise."""
    module: nn.Module = model.model.diffusion_model
    return module


def load_device(part: Any) -> torch.device:
    """Return where a MODEL or CLIP computes, which is not where its weights lie if they are offloaded."""
    device: torch.device = patcher_of(part).load_device
    return device


def latent_layout(model: Any) -> tuple[int, int]:
    """Return the channels of a MODEL's latents, and how many pixels of a side an entry stands for."""
    form = model.get_model_object("latent_format")
    return form.latent_channels, getattr(form, "spacial_downscale_ratio", _RATIO)


def text_model(clip: Any) -> nn.Module:
    """Return the module that holds the text encoders of a CLIP."""
    module: nn.Module = clip.cond_stage_model
    return module


def use_text_model(clip: Any) -> None:
    """Let a CLIP compute with the module of its patcher; a clone that is not streamed has another one."""
    clip.cond_stage_model = clip.patcher.model


def text_encoders(clip: Any) -> dict[str, nn.Module]:
    """Return the encoders of a CLIP that take tokens, by their names in it."""
    named = text_model(clip).named_modules()
    return {path or "clip": part for path, part in named if isinstance(part, comfy.sd1_clip.SDClipModel)}


def prepare_text_encoders(clip: Any) -> None:
    """Set the text encoders to the layer and device that encoding a prompt with this CLIP uses."""
    encoders: Any = text_model(clip)
    encoders.reset_clip_options()
    if clip.layer_idx is not None:
        encoders.set_clip_options({"layer": clip.layer_idx})
    encoders.set_clip_options({"execution_device": load_device(clip)})


def list_fused_linears(clip: Any | None) -> list[tuple[str, str, dict[str, int]]]:
    """List the fused weights of text encoders: a module's path, its linear layer, the rows of each part."""
    found: list[tuple[str, str, dict[str, int]]] = []
    for path, part in text_model(clip).named_modules() if clip is not None else ():
        module: Any = part
        if getattr(module, "merged_qkv", False) and hasattr(module, "kv_size"):
            sizes = {"q_proj": module.inner_size, "k_proj": module.kv_size, "v_proj": module.kv_size}
            found.append((path, "qkv_proj", sizes))
        if getattr(module, "merged_mlp", False) and hasattr(module, "gate_up_proj"):
            half = module.gate_up_proj.weight.shape[0] // 2
            found.append((path, "gate_up_proj", {"gate_proj": half, "up_proj": half}))
    return found


def image_model(model: Any) -> str:
    """Return ComfyUI's name for the architecture of a MODEL, such as ``flux``."""
    return str(model.model.model_config.unet_config.get("image_model"))


def model_kind(model: Any) -> str:
    """Return the name of ComfyUI's class for a MODEL, such as ``FluxSchnell``."""
    return type(model.model.model_config).__name__


def read_stored_weights(part: Any) -> dict[str, StoredWeight]:
    """Return the weights of a MODEL or CLIP by the keys of its state dict, all without patches.

    The state dict itself has other tensors where a module quantises: packed data, or stand-ins on the meta
    device. Keys that are no attribute, such as the scales of such a module, have the state dict's tensor.
    """
    patcher = patcher_of(part)
    modules = dict(patcher.model.named_modules())
    found: dict[str, StoredWeight] = {}
    for key, listed in patcher.model.state_dict().items():
        path, _, role = key.rpartition(".")
        module = modules.get(path)
        held = getattr(module, role, None)
        weight = held if isinstance(held, Tensor) else listed
        # while patches are loaded, the model's own weight is kept aside: as a record, or beside its device
        if (kept := patcher.backup.get(key)) is not None:
            weight = kept.weight
        if (hooked := patcher.hook_backup.get(key)) is not None:
            weight = hooked[0]
        found[key] = StoredWeight(weight, getattr(module, f"convert_{role}", None), module)
    return found


def read_widened_shapes(part: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of weights that patches already on a MODEL pad with zeros, as control LoRAs do."""
    found: dict[str, tuple[int, ...]] = {}
    for key, patches in patcher_of(part).patches.items():
        for _, patch, *_ in patches:
            shape = getattr(patch, "calculate_shape", lambda _: None)(key)
            if shape is not None:
                found[key] = tuple(map(max, shape, found.get(key, shape)))
    return found


def hand_to_patch(stored: StoredWeight) -> Tensor:
    """Return what ComfyUI hands to a patch of a weight: a copy in float32, dequantised if the module can.

    On a GPU the copy may be in float16.
    """
    copy = stored.weight.to(torch.float32, copy=True)
    return copy if stored.convert is None else stored.convert(copy, inplace=True)


def with_patches(part: Any, key: str, weight: Tensor) -> Tensor:
    """Return a weight from ``hand_to_patch``, which is used up, with the patches of a MODEL or CLIP."""
    patches = patcher_of(part).patches.get(key)
    if not patches:
        return weight
    patched: Tensor = comfy.lora.calculate_weight(patches, weight, key)
    return patched


def is_patched_by_pack(part: Any) -> bool:
    """Return whether another pack patches the weights of this model in its own way, as those for GGUF do."""
    own = type(patcher_of(part)).patch_weight_to_device
    return str(own.__module__) != comfy.model_patcher.__name__


def pack_low_rank(up: Tensor, down: Tensor, alpha: float, padded_to: tuple[int, ...]) -> tuple[Any, ...]:
    """Return the state of ComfyUI's LoRA adapter, which multiplies by ``alpha / rank``.

    Its fourth and fifth entries are the middle factor of a convolution and the scale of DoRA.
    """
    return up, down, alpha, None, None, list(padded_to) or None


def unpack_low_rank(weights: tuple[Any, ...]) -> tuple[Tensor, Tensor, Any]:
    """Return the factors in the state of a LoRA adapter, and the shape that it pads to, or None."""
    up, down, _, _, _, padded_to = weights
    return up, down, padded_to


def quantised_as(weight: Tensor) -> str:
    """Return the layout of one of ComfyUI's quantised tensors, or ``""``."""
    return str(getattr(weight, "_layout_cls", ""))


def attach_metadata(part: Any, metadata: Mapping[str, str]) -> None:
    """Leave the metadata of a LoRA's file on a (cloned) MODEL or CLIP, as Load LoRA does."""
    patcher_of(part).set_attachments(_METADATA, dict(metadata))


def copy_patches(part: Any, other: Any) -> None:
    """Give a (cloned) MODEL or CLIP the patches of another one of the same model, in place of its own."""
    own, given = patcher_of(part), patcher_of(other)
    own.patches = {key: patches[:] for key, patches in given.patches.items()}
    own.patches_uuid = given.patches_uuid


def is_streamed(part: Any) -> bool:
    """Return whether ComfyUI streams the weights of a MODEL or CLIP in while it computes (dynamic VRAM)."""
    return bool(getattr(patcher_of(part), "is_dynamic", lambda: False)())


def clone_static(part: Any) -> Any:
    """Return a clone of a streamed MODEL or CLIP that is not streamed, loaded a second time.

    Raises:
        RuntimeError: if its loader cannot load it again.
    """
    return part.clone(disable_dynamic=True)


def call_options(model: Any) -> dict[str, Any]:
    """Return the options and wrappers that a MODEL gives to each call of its diffusion model."""
    options: dict[str, Any] = comfy.patcher_extension.copy_nested_dicts(
        model.model_options.get("transformer_options", {})
    )
    for kind in ("wrappers", "callbacks"):
        own = getattr(model, kind, {})
        options[kind] = comfy.patcher_extension.merge_nested_dicts(options.get(kind, {}), own)
    return options


@contextmanager
def training_mode() -> Iterator[None]:
    """Let ComfyUI's layers compute so that gradients pass."""
    management: Any = comfy.model_management
    before = getattr(management, "in_training", False)
    management.in_training = True
    try:
        yield
    finally:
        management.in_training = before


def make_room(device: torch.device, keep: Iterable[Any]) -> None:
    """Unload all models from a device but those of ``keep``, which are patchers."""
    management: Any = comfy.model_management
    kept = list(keep)
    loaded = [one for one in management.current_loaded_models if one.model in kept]
    management.free_memory(1e30, device, keep_loaded=loaded)


def recognise_checkpoint(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return ComfyUI's configuration of the diffusion model in a file, by its weights; empty if unknown."""
    weights = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
    for prefix in (comfy.model_detection.unet_prefix_from_state_dict(weights), ""):  # or the model alone
        try:
            found = comfy.model_detection.detect_unet_config(weights, prefix)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            continue  # it expects weights that this file lacks, or reads their values
        if found:
            return dict(found)
    return {}


def running_server() -> Any | None:
    """Return ComfyUI's server; None where its nodes run without one."""
    # ComfyUI's main script imports its server; without that module there is nobody to talk to
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
