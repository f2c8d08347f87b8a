"""Making ComfyUI's modules fit for gradients: its weights are inference tensors, and it adds in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ....merge_ops.errors import ParameterError

Held = dict[str, Tensor | None]  # the parameters or the buffers of a module, by name


@contextmanager
def as_normal_tensors(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Give modules normal tensors in place of inference tensors, and put the same objects back afterwards.

    The new tensors share the memory of the old ones, so that this costs none; only weights of a quantised
    layout, which are more than one tensor, are copied. Whatever replaced a tensor meanwhile is left alone.

    Raises:
        ParameterError: for a quantised weight that cannot be copied; the message has its name.
    """
    exchanged: list[tuple[Held, str, Tensor, Tensor]] = []
    try:
        for module in modules:
            for path, part in module.named_modules():
                for held in (part._parameters, part._buffers):
                    for name, tensor in held.items():
                        if tensor is not None and tensor.is_inference():
                            new = _normal(tensor, f"{path}.{name}")
                            held[name] = new
                            exchanged.append((held, name, tensor, new))
        yield
    finally:
        for held, name, tensor, new in exchanged:
            if held.get(name) is new:
                held[name] = tensor


@contextmanager
def kept_inputs(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Give the norms inside modules copies of what gradients need of their inputs.

    Blocks of transformers add to ``x`` in place after ``norm(x)``, whose gradient needs the ``x`` before.
    """

    def copy(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            value.clone() if isinstance(value, Tensor) and value.requires_grad else value for value in args
        )

    norms = [part for module in modules for part in module.modules() if "Norm" in type(part).__name__]
    hooks = [norm.register_forward_pre_hook(copy) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _normal(tensor: Tensor, name: str) -> Tensor:
    """A tensor of the same class and values that was not made in inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        if type(tensor) in (Tensor, nn.Parameter):
            new = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            place = tensor.storage_offset(), tensor.size(), tensor.stride()
            new.set_(tensor.untyped_storage(), *place)
        else:
            try:
                new = tensor.clone()
            except (NotImplementedError, RuntimeError, TypeError) as error:
                raise ParameterError(
                    f"{name} is a {type(tensor).__name__}, which cannot be trained through; load the model "
                    "with another weight_dtype"
                ) from error
        return nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new
