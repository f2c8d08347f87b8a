"""Extracting a LoRA from a tuned model and its base, one weight at a time."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..formats.model_files import open_whole_model
from ..formats.whole_model import WholeModel
from ..lora import Lora
from ..merging.devices import usable_device
from ..merging.svd import squared_singular_values_of
from ..progress import Progress
from .collected import Collected
from .difference import difference
from .extracted import Extracted
from .found import Found
from .layer_names import NamesInFiles
from .options import ExtractOptions
from .pairs import Pairs, pair_weights

Model = str | os.PathLike[str] | WholeModel

_LITTLE = 0.9  # of the difference; below this a user asks what a larger rank would hold
_NOTICED = 0.05  # of the difference; less rounding is not worth a line
_SAMPLED = 8  # layers whose singular values tell that
# what a tuned checkpoint says of itself that is true of a LoRA made from it
_STATED = tuple(
    f"modelspec.{key}"
    for key in (
        "author", "license", "prediction_type", "resolution", "tags", "trigger_phrase", "usage_hint",
    )
)  # fmt: skip


def extract(
    tuned: Model,
    base: Model,
    *,
    rank: int | None = None,
    energy: float | None = None,
    conv_rank: int | None = None,
    min_diff: float = 0.0,
    clamp: float | None = None,
    vectors: bool = True,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Extracted:
    """Extract a LoRA: the difference of two models, each layer at a low rank.

    >>> lora = merge_ops.extract("tuned.safetensors", "base.safetensors", rank=32)
    >>> saved = merge_ops.save(lora, "tuned_lora.safetensors")

    Each layer is the truncated SVD of its difference, which no other matrix of its rank comes closer to;
    differences of biases and norms are stored as they are. Weights are read one at a time, so that memory
    holds one difference and the LoRA.

    Args:
        tuned: a safetensors file, with or without text encoders; a folder of diffusers or transformers,
            sharded or not; or a ``WholeModel``.
        base: what it was tuned from; layouts and dtypes may differ.
        rank: of every layer, 32 by default. With ``energy``, the largest rank that a layer may get.
        energy: the share of each layer's difference to hold, in (0, 1]; each layer gets the smallest rank
            that does. The energy is the squared Frobenius norm: 0.95 leaves a relative error of
            ``sqrt(0.05)``.
        conv_rank: instead of ``rank``, of convolutions with kernels larger than 1 (kohya's ``conv_dim``).
        min_diff: leave out weights none of whose entries differ by more (kohya's ``min_diff``).
        clamp: a quantile in (0, 1] at which the entries of both factors are clipped (kohya's
            ``clamp_quantile``, there 0.99). It tames outliers, and loses what they hold.
        vectors: also store differences of biases and norms, which ComfyUI reads and many programs do not.
        device: where to compute; the CPU by default.
        progress: called as ``progress(done, total, weight)``; an exception raised in it ends the extraction.

    Raises:
        LoraFormatError: if a model cannot be read, or is packed in a way that cannot be turned into numbers.
        IncompatibleLoraError: if one model is not the base of the other.
        ParameterError: for a value that is not allowed.
        MergeError: if the models do not differ, or one of them holds NaN or infinity.
    """
    options = ExtractOptions(
        rank=rank, energy=energy, conv_rank=conv_rank, min_diff=min_diff, clamp=clamp, vectors=vectors
    )
    where = usable_device(device)
    own, other = (each if isinstance(each, WholeModel) else open_whole_model(each) for each in (tuned, base))
    pairs = pair_weights(own, other)
    other = pairs.base
    collected, names = Collected(own, options, dict(pairs.left_out)), NamesInFiles(own)
    for done, name in enumerate(pairs.names):
        if progress is not None:
            progress(done, len(pairs.names), name)
        found = difference(name, own.weights[name], other.weights[name], where)
        if found is None:
            collected.same.append(name)
        else:
            collected.take(name, found, names)
        del found  # before the next one is made
    collected.refuse_nothing(other, len(pairs.names))
    spectra = _spectra(collected, other, where)
    if progress is not None:
        progress(len(pairs.names), len(pairs.names), "")
    return _finished(collected, other, pairs, spectra)


def _spectra(collected: Collected, base: WholeModel, where: torch.device | None) -> tuple[Tensor, ...]:
    """The squared singular values of some truncated layers, if little of the difference is held."""
    if collected.share_held >= _LITTLE or collected.options.rank is None:
        return ()
    cut = [name for name, share in collected.held.items() if share < _LITTLE]
    places = torch.linspace(0, len(cut) - 1, min(len(cut), _SAMPLED)).long().tolist()
    weights = collected.model.weights
    found = (difference(cut[i], weights[cut[i]], base.weights[cut[i]], where) for i in places)
    return tuple(squared_singular_values_of(each.matrix).cpu() for each in found if each is not None)


def _finished(collected: Collected, base: WholeModel, pairs: Pairs, spectra: tuple[Tensor, ...]) -> Extracted:
    model, held = collected.model, collected.share_held
    found = Found(
        layers=collected.found_layers(),
        held=held,
        same=tuple(collected.same),
        ignored=collected.ignored,
        left_out=collected.left_out,
        lost=sum(collected.lost.values()) / collected.whole,
        notes=pairs.notes,
        spectra=spectra,
    )
    lora = Lora(
        name=model.name,
        layers=collected.layers,
        dialect=model.dialect,
        metadata={key: text for key in _STATED if (text := model.metadata.get(key))},
        unmerged=collected.left_out,
        warnings=tuple(collected.warnings()),
        sha256=model.sha256(),
    )
    settings = collected.options.to_dict()
    record = {"base": {"name": base.name, "sha256": base.sha256()}, "settings": settings, "held": held}
    return Extracted(lora, found, record, collected.stems)
