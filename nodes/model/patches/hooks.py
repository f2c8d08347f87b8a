"""Merges as ComfyUI's hooks: for conditioning, and for a MODEL whose merge changes over the sampling.

A hook patches weights for the calls of the model that it is on for. ComfyUI keeps the weights that it changes
aside, and puts them back whatever ends the sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from comfy.hooks import EnumWeightTarget, HookGroup, HookKeyframeGroup, WeightHook, create_target_dict
from comfy.patcher_extension import WrappersMP

from ....merge_ops.errors import IncompatibleLoraError, ParameterError
from ....merge_ops.merging.merged import Merged
from ..configurations import configurations_of
from ..core import is_patched_by_pack, read_widened_shapes
from ..core_hooks import add_hook_patches, list_conditions, takes_hooks
from ..static import make_static_model
from ..target import Target
from .patch import add_merge
from .whole_weights import WholeWeightAdapter

Targets = dict[str, Target]
_KEY = "lora_alloy"  # of the wrapper on a MODEL
_ENDLESS = -1.0  # below every noise level


class Spans(HookKeyframeGroup):
    """The parts of the sampling in which a hook is on, in place of keyframes.

    ComfyUI's keyframes only go forward. Samplers that look ahead or try a step again come back to an earlier
    noise level, and here they find what belongs to it.
    """

    def __init__(self, spans: Sequence[tuple[float, float]] = ()) -> None:
        super().__init__()
        self._spans = tuple(spans)
        self._sigmas: list[tuple[float, float]] = []
        self._is_on = False

    @property
    def strength(self) -> float:
        """1 where the hook is on, else 0."""
        return float(self._is_on)

    def reset(self) -> None:
        """Forget where the last sampling ended."""
        self._is_on = False

    def clone(self) -> Spans:
        """Return spans of the same shares."""
        return Spans(self._spans)

    def initialize_timesteps(self, model: Any) -> None:
        """Find the noise levels of the shares for this model."""
        to_sigma = model.model_sampling.percent_to_sigma
        self._sigmas = [(to_sigma(a), to_sigma(b) if b < 1 else _ENDLESS) for a, b in self._spans]

    def prepare_current_keyframe(self, curr_t: float, transformer_options: dict[str, Any]) -> bool:
        """Switch to the noise level of a call; True if that changes anything."""
        before = self._is_on
        self._is_on = any(start >= curr_t and not end >= curr_t for start, end in self._sigmas)
        return self._is_on != before


class MergeHook(WeightHook):  # type: ignore[misc]  # ComfyUI is not typed
    """A merge as a hook: the patches that the merge nodes would add, made when ComfyUI registers the hook."""

    def __init__(self, strength_model: float = 1.0, strength_clip: float = 1.0) -> None:
        super().__init__(strength_model, strength_clip)
        self.merged: Merged | None = None
        self.targets: dict[EnumWeightTarget, Targets] = {}

    @classmethod
    def of(cls, merged: Merged, unet: Targets, clip: Targets, spans: Spans | None = None) -> MergeHook:
        """Make a hook of a merge, for the weights of a model and of its text encoder."""
        hook = cls()
        hook.merged = merged
        hook.targets = {EnumWeightTarget.Model: unet, EnumWeightTarget.Clip: clip}
        if spans is not None:
            hook.hook_keyframe = spans
        return hook

    @property
    def hook_keyframe(self) -> HookKeyframeGroup:
        """When the hook is on, and how much."""
        return self._keyframes

    @hook_keyframe.setter
    def hook_keyframe(self, keyframes: HookKeyframeGroup) -> None:
        if isinstance(getattr(self, "_keyframes", None), Spans) and not isinstance(keyframes, Spans):
            if keyframes.is_empty():  # what ComfyUI gives to hooks for a text encoder that follows none
                return
            raise ParameterError(
                "these hooks already change over the sampling, by the steps= of their LoRAs; remove steps= "
                "from the list to set keyframes"
            )
        self._keyframes = keyframes

    def clone(self) -> MergeHook:
        """Return a hook with the same merge, which ComfyUI counts as the same hook."""
        copy: MergeHook = super().clone()
        copy.merged, copy.targets = self.merged, self.targets
        return copy

    def add_hook_patches(
        self, model: Any, model_options: dict[str, Any], target_dict: dict[str, Any], registered: HookGroup
    ) -> bool:
        """Give a ModelPatcher the patches of this hook.

        Raises:
            ParameterError: if the merge was made without a model.
            IncompatibleLoraError: if hooks cannot change the weights, or would have to widen one.
        """
        if not self.should_register(model, model_options, target_dict, registered):
            return False
        if self.merged is None:
            raise ParameterError(
                "hooks need the weights of the model that they are for: connect model to Merge LoRAs"
            )
        target = target_dict.get("target") or EnumWeightTarget.Model
        refuse_unhookable(model)
        _refuse_widening(model, self.merged, self.targets[target])
        add_merge(_Registering(model, self), self.merged, self.targets[target], 1.0)
        registered.add(self)
        return True


class _Registering:
    """Takes the patches of a merge as a ModelPatcher does, and adds them to one as those of a hook."""

    def __init__(self, patcher: Any, hook: MergeHook) -> None:
        self._patcher = patcher
        self._hook = hook

    def add_patches(self, patches: Mapping[Any, Any], strength: float) -> None:
        """Add patches at a strength; those that replace a weight do so while the hook is on."""
        held = {key: _while_on(patch) for key, patch in patches.items() if not _is_configuration(patch)}
        if held:
            add_hook_patches(self._patcher, self._hook, held, strength)


def make_hooks(*hooks: MergeHook) -> HookGroup:
    """Return a group of hooks, as ComfyUI's HOOKS hold them."""
    group = HookGroup()
    for hook in hooks:
        group.add(hook)
    return group


def carry_hooks(model: Any, hooks: HookGroup) -> Any:
    """Return a MODEL that applies hooks to every conditioning that it samples with, after its own patches.

    A conditioning may have hooks besides: they come after these, and one that is among both counts once.

    Raises:
        MergeError: if hooks cannot change the weights of the model, or it cannot be loaded for them.
    """
    carrying = make_static_model(model)
    target = create_target_dict(EnumWeightTarget.Model)
    for hook in hooks.hooks:
        hook.add_hook_patches(carrying, {}, target, HookGroup())
    for earlier in carrying.get_wrappers(WrappersMP.OUTER_SAMPLE, _KEY):  # of a node before this one
        hooks = earlier.hooks.clone_and_combine(hooks)
    carrying.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, _KEY)
    carrying.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, _WithHooks(hooks))
    return carrying


def refuse_carrying(model: Any, what: str) -> None:
    """Refuse a MODEL that changes over the sampling, where ``what`` is done with one set of weights.

    Raises:
        ParameterError: if it does.
    """
    if model is not None and model.get_wrappers(WrappersMP.OUTER_SAMPLE, _KEY):
        raise ParameterError(
            f"this MODEL changes over the sampling, and {what} needs one that stays; remove steps= from the "
            "list of the node that it comes from"
        )


class _WithHooks:
    """Gives the hooks of a MODEL to the conditionings of a sampling, which are copies made for it."""

    def __init__(self, hooks: HookGroup) -> None:
        self.hooks = hooks

    def __call__(self, executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Sample with them."""
        groups: dict[
            HookGroup | None, HookGroup
        ] = {}  # conditionings that share a group are computed together
        for condition in list_conditions(executor):
            own = condition.get("hooks")
            if own not in groups:
                groups[own] = self.hooks.clone_and_combine(own)
            condition["hooks"] = groups[own]
        return executor(*args, **kwargs)


def refuse_unhookable(patcher: Any) -> None:
    """Refuse a ModelPatcher whose weights hooks cannot change.

    Raises:
        IncompatibleLoraError: if so.
    """
    why = ""
    if is_patched_by_pack(patcher):
        why = "another pack patches the weights of this model, as those for GGUF do"
    elif not takes_hooks(patcher):
        why = "the weights of this model are quantised"
    if why:
        raise IncompatibleLoraError(
            f"ComfyUI's hooks, which steps= needs, cannot change the weights: {why}; remove steps= from the "
            "list, or load the model in 16 bits"
        )


def _refuse_widening(patcher: Any, merged: Merged, targets: Targets) -> None:
    """A weight that patches of the model widen already is another matter: there is room in it."""
    wide = read_widened_shapes(patcher)
    for name in merged.layers:
        if name in targets and merged.layer(name).padded_to and targets[name].key not in wide:
            raise IncompatibleLoraError(
                f"{name} is widened by a control LoRA, and hooks cannot change the shape of a weight while a "
                "model samples; load the control LoRA with a node before this one"
            )


def list_unhooked(merged: Merged) -> list[str]:
    """Return a line if a merge holds something that hooks cannot do."""
    held = configurations_of(merged)
    if not held:
        return []
    return [f"{len(held)} configurations of modules, such as {next(iter(held))}, cannot be hooks: left out"]


def _is_configuration(patch: Any) -> bool:
    return isinstance(patch, tuple) and patch[0] == "config"


def _while_on(patch: Any) -> Any:
    return WholeWeightAdapter(set(), patch[1]) if isinstance(patch, tuple) and patch[0] == "set" else patch
