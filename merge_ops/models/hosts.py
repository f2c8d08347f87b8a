"""Diffusers pipelines and transformers models as hosts of learning; see ``merge_ops.learning``.

host = DiffusersHost(pipe)
recording = merge_ops.learning.record(host, loras, lambda lora: pipe(prompts[lora.name]))
merged = merge_ops.learning.distill(recording, host, loras)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import IncompatibleLoraError
from ..learning.host import Host, Site, first_tensor
from ..learning.plain import Tree, tensors_in
from ..merging.merged import Merged
from .applied import FindModule
from .diffusers import components, finder
from .diffusers import patched as patched_pipeline
from .modules import Modules
from .transformers import patched as patched_text_model

POSITIONS = 64  # of each text at which the logits of a language model are recorded


class ModelHost(Host):
    """A model in memory whose layers are modules that ``find`` looks up."""

    def __init__(self, modules: Mapping[str, nn.Module], find: FindModule, base: Any) -> None:
        self.modules = modules
        self.base = base
        self._find = find

    def site(self, layer: str) -> Site | None:
        """Return the module of a layer or bias."""
        module = self._find(layer.removesuffix(".bias"))
        return None if module is None else Site(module)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Freeze every weight, and afterwards let those take gradients that did before."""
        trained = [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]
        for weight in trained:
            weight.requires_grad_(False)
        try:
            with torch.inference_mode(False):
                yield
        finally:
            for weight in trained:
                weight.requires_grad_(True)


class DiffusersHost(ModelHost):
    """A diffusers pipeline, or a UNet or transformer of one.

    Recorded are the denoiser, and with ``text_encoders`` those as well.
    """

    def __init__(self, target: Any, text_encoders: bool = False) -> None:
        parts = components(target)
        denoiser = next((parts[name] for name in ("transformer", "unet") if name in parts), None)
        modules = {} if denoiser is None else {"denoiser": denoiser}
        if text_encoders or denoiser is None:
            modules |= {name: part for name, part in parts.items() if name.startswith("text_encoder")}
        if not modules:
            raise IncompatibleLoraError(f"a {type(target).__name__} has no denoiser and no text encoder")
        super().__init__(modules, finder(target), target)
        self._target = target

    def applied(self, merged: Merged | None) -> AbstractContextManager[Any]:
        """Return a context in which the merge is added to the weights of the pipeline."""
        return nullcontext() if merged is None else patched_pipeline(self._target, merged)

    def inputs(self, name: str, args: Tree, kwargs: Tree) -> tuple[Tree, Tree]:
        """Return the plain inputs; a denoiser's timestep is repeated for each entry of the batch."""
        args, kwargs = super().inputs(name, args, kwargs)
        if name != "denoiser":
            return args, kwargs
        count = len(tensors_in((args, kwargs))[0])
        if "timestep" in kwargs:
            return args, kwargs | {"timestep": _repeated(kwargs["timestep"], count)}
        return tuple(_repeated(each, count) if place else each for place, each in enumerate(args)), kwargs


class TransformersHost(ModelHost):
    """A transformers model, or any module whose layers are named by path; its one module is called ``model``.

    Language models are compared by the logits at up to ``POSITIONS`` places of each text (by KL divergence
    when they are trained), other models by their last hidden states. Padding does not count.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        head: Any = getattr(model, "get_output_embeddings", lambda: None)()
        self.loss = "mse" if head is None else "kl"
        super().__init__({"model": model}, Modules(model).find, model)

    def applied(self, merged: Merged | None) -> AbstractContextManager[Any]:
        """Return a context in which the merge is added to the weights of the model."""
        return nullcontext() if merged is None else patched_text_model(self._model, merged)

    def output(self, name: str, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return hidden states or centred logits, with padding set to 0."""
        states = output.logits if self.loss == "kl" else first_tensor(output)
        given = kwargs.get("attention_mask")
        mask = given if isinstance(given, Tensor) and given.shape == states.shape[:2] else None
        if self.loss == "mse":
            return states if mask is None else states * mask.unsqueeze(-1).to(states.dtype)
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        places, counts = _places(mask.bool())
        chosen = states.gather(1, places.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        chosen = chosen - chosen.mean(dim=-1, keepdim=True)  # a constant changes no probability
        return chosen * counts.unsqueeze(-1).to(chosen.dtype)


def _places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Places of each text, spread evenly, ``(texts, places)``, and which of them are no padding."""
    lengths = mask.sum(dim=1)  # (texts,)
    width = min(POSITIONS, mask.shape[1])
    order = torch.argsort(mask.to(torch.int8), dim=1, descending=True, stable=True)  # what counts comes first
    steps = torch.arange(width, device=mask.device)
    spread = steps * lengths.unsqueeze(1) // width  # (texts, width)
    few = lengths.unsqueeze(1) <= width
    index = torch.where(few, steps.expand(len(mask), -1), spread)
    counts = ~few | (steps < lengths.unsqueeze(1))
    return order.gather(1, index), counts


def _repeated(value: Any, count: int) -> Any:
    return value.expand(count) if isinstance(value, Tensor) and value.ndim == 0 else value
