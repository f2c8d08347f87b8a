"""Diffusers' real models without weights: their modules, on the meta device."""

import diffusers
import torch
from accelerate import init_empty_weights

from tests.architectures.configs import DIFFUSERS
from tests.architectures.keys import Shapes

_KINDS = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)


def empty_model(architecture: str) -> torch.nn.Module:
    """The denoiser at its real size, without weights."""
    _, name, config = DIFFUSERS[architecture]
    with init_empty_weights(include_buffers=True):
        return getattr(diffusers, name)(**config)


def pipeline_class(architecture: str):
    """The class whose ``lora_state_dict`` reads LoRA files of the architecture."""
    return getattr(diffusers, DIFFUSERS[architecture][0])


def modules(architecture: str) -> Shapes:
    """Every layer that a LoRA can change."""
    named = empty_model(architecture).named_modules()
    return {name: tuple(module.weight.shape) for name, module in named if isinstance(module, _KINDS)}
