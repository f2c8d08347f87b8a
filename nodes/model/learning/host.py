"""A ComfyUI model with a merge added: run, recorded, measured and trained, and then as it was before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn

from ....merge_ops.learning import Host, Site
from ....merge_ops.learning.host import first_tensor
from ....merge_ops.learning.plain import plain
from ....merge_ops.merging.merged import Merged
from ..core import (
    call_options,
    diffusion_model,
    load_device,
    make_room,
    patcher_of,
    prepare_text_encoders,
    text_encoders,
    text_model,
    training_mode,
)
from ..host_parts import adopted, refuse_another, rows, token_tensor
from ..patches.patch import add_merge
from ..places.fitting import FittedLoras
from ..static import make_static
from ..target import Target
from .trainable import as_normal_tensors, kept_inputs

DENOISER = "denoiser"
_PER_CALL = ("sigmas",)  # what a patch of attention may ask for; the rest of such options is the model's own


@dataclass(frozen=True, slots=True)
class Applied:
    """A MODEL that has been patched already, to be measured in place of a merge."""

    model: Any
    clip: Any = None


class ComfyHost(Host):
    """MODEL, and CLIP if it is connected, with the names that fitted LoRAs have for their weights.

    ``model`` and ``clip`` are the user's; nothing of them is changed but what ComfyUI itself changes when it
    loads and unloads a patched clone. Text encoders are modules of their own, ``clip_l`` for example, if the
    LoRAs have layers in them.
    """

    def __init__(self, model: Any, clip: Any | None, fitted: FittedLoras, with_text: bool = True) -> None:
        self.model, self.clip = make_static(model, clip)
        self.fitted = fitted
        # what sampling takes: patched clones inside ``applied``
        self.model_now, self.clip_now = self.model, self.clip
        self._targets: dict[str, Target] = {**fitted.unet, **fitted.clip}
        self._fingerprint: str | None = None
        has_text = self.clip is not None and fitted.clip and with_text
        encoders = text_encoders(self.clip) if has_text else {}
        self.modules: Mapping[str, nn.Module] = {DENOISER: diffusion_model(self.model), **encoders}

    def site(self, layer: str) -> Site | None:
        """Return the module of a layer, and its rows where several layers share a weight.

        None for a layer that is not in the model, and for what is not trained: a bare parameter, an embedding
        (whose rows ComfyUI stores as a linear layer's), and a part of a weight that is cut along its columns.
        """
        target = self._targets.get(layer)
        if target is None:
            return None
        path, _, role = target.key.rpartition(".")
        whole = self.model.model if target.is_denoiser else text_model(self.clip)
        if role not in ("weight", "bias") or (target.part is not None and target.part.dim != 0):
            return None
        module = whole.get_submodule(path)
        if isinstance(module, nn.Embedding):
            return None
        return Site(module, rows(target, len(getattr(module, role))))

    @contextmanager
    def applied(self, merged: Merged | Applied | None) -> Iterator[None]:
        """Load clones with the merge patched in; afterwards the weights are those of the base again."""
        before = self.model_now, self.clip_now
        self.model_now, self.clip_now = self._patched(merged)
        try:
            self._load()
            yield
        finally:
            self.model_now, self.clip_now = before
            self._load()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Leave inference mode, with weights in place that autograd can save; see ``trainable``."""
        self._make_room()
        parts = self.modules.values()
        with torch.inference_mode(False), as_normal_tensors(parts), kept_inputs(parts), training_mode():
            yield

    def fingerprint(self) -> str:
        """Return that of the base as it is loaded without a merge; read once, since MODEL does not change."""
        if self._fingerprint is None:
            with self.applied(None):
                self._fingerprint = super().fingerprint()
        return self._fingerprint

    def device(self, name: str) -> torch.device:
        """Return where the module computes, which is not where its weights lie if they are offloaded."""
        return load_device(self.model if name == DENOISER else self.clip)

    def inputs(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Keep tensors and numbers; of the options of a diffusion model only what differs from call to call.

        Raises:
            ParameterError: if a prompt contains an embedding in place of a token.
        """
        if name != DENOISER:
            return (token_tensor(args[0]),), {}
        kept = dict(kwargs)
        if "transformer_options" in kept:
            given = kept["transformer_options"] or {}
            kept["transformer_options"] = {key: given[key] for key in _PER_CALL if key in given}
        return plain(args), plain(kept)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module as sampling, or encoding a prompt, would."""
        if name != DENOISER:
            prepare_text_encoders(self.clip)
            return self.modules[name](args[0].tolist())
        if "transformer_options" in kwargs:
            kwargs = {
                **kwargs,
                "transformer_options": call_options(self.model_now) | kwargs["transformer_options"],
            }
        return self.modules[name](*args, **kwargs)

    def output(self, name: str, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return the prediction; of a text encoder its hidden states, and after them the pooled one."""
        answer = first_tensor(output)
        if name != DENOISER and len(output) > 1 and isinstance(output[1], Tensor):
            pooled = output[1]
            if answer.ndim == 3 and pooled.shape == (len(answer), answer.shape[-1]):
                answer = torch.cat([answer, pooled[:, None].to(answer.dtype)], dim=1)
        return answer

    def check_model(self, model: Any) -> None:
        """Refuse a MODEL that was not recorded.

        Raises:
            ParameterError: if its weights have other names or shapes.
        """
        refuse_another(self.model, model, "MODEL")

    def adopt(self, given: Applied) -> Applied:
        """Return the patches of a MODEL and a CLIP on clones of the host's own.

        Raises:
            ParameterError: if they are of another model.
        """
        return Applied(
            adopted(self.model, given.model, "MODEL"),
            None if self.clip is None or given.clip is None else adopted(self.clip, given.clip, "CLIP"),
        )

    def _patched(self, merged: Merged | Applied | None) -> tuple[Any, Any]:
        if isinstance(merged, Applied):
            return merged.model, merged.clip or self.clip
        model, clip = self.model.clone(), None if self.clip is None else self.clip.clone()
        if merged is not None:
            add_merge(model, merged, self.fitted.unet, 1.0)
            if clip is not None:
                add_merge(clip, merged, self.fitted.clip, 1.0)
        return model, clip

    def _load(self) -> None:
        # ComfyUI copies inference tensors that it puts back outside of inference mode; inside, it moves them
        with torch.inference_mode():
            comfy.model_management.load_models_gpu(self._patchers())

    def _make_room(self) -> None:
        """Unload other models from a GPU: activations that gradients need take more than sampling does."""
        device = load_device(self.model_now)
        if device.type != "cpu":
            with torch.inference_mode():
                make_room(device, keep=self._patchers())

    def _patchers(self) -> list[Any]:
        """Those of the MODEL and CLIP that sampling takes now."""
        return [patcher_of(part) for part in (self.model_now, self.clip_now) if part is not None]
