"""A recording: what the LoRAs of a merge do, each alone, to the calls of a model."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import IncompatibleLoraError, ParameterError
from ..lora import Lora
from ..merging.request import Request
from .capture import content
from .host import Host
from .plain import tensors_in
from .samples import KEEP, TOGETHER, Role, Sample


@dataclass(frozen=True, slots=True)
class RecordedLora:
    """A LoRA of a recording: which it is, how strong it was, and the prompts that it was recorded with."""

    name: str
    sha256: str  # of the file, or of its deltas where there is none
    weight: float
    text_weight: float
    blocks: str | None = None
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Recording:
    """Calls of a model's modules with each LoRA alone, without any ("keep"), and with all ("together")."""

    samples: tuple[Sample, ...]
    loras: tuple[RecordedLora, ...]
    base: str  # the host's fingerprint
    seed: int
    keep_prompts: tuple[str, ...] = ()
    together_prompts: tuple[str, ...] = ()

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """One name per LoRA; equal names are numbered."""
        counts: Counter[str] = Counter()
        labels = []
        for lora in self.loras:
            counts[lora.name] += 1
            labels.append(lora.name if counts[lora.name] == 1 else f"{lora.name} ({counts[lora.name]})")
        return tuple(labels)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of all that it holds."""
        digest = hashlib.sha256(repr((self.loras, self.base, self.seed)).encode())
        for sample in self.samples:
            digest.update(repr((sample.module, sample.role, sample.is_held_out)).encode())
            for tensor in (*tensors_in((sample.args, sample.kwargs)), sample.output):
                digest.update(content(tensor))
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """The bytes of its tensors, each counted once."""
        tensors = {
            id(tensor): tensor.nbytes
            for sample in self.samples
            for tensor in (*tensors_in((sample.args, sample.kwargs)), sample.output)
        }
        return sum(tensors.values())

    def part(
        self, module: str | None = None, role: Role | None = None, held_out: bool = False
    ) -> list[Sample]:
        """Return the samples to learn from, or those held out; of one module or role where given."""
        return [
            sample
            for sample in self.samples
            if sample.is_held_out == held_out
            and module in (None, sample.module)
            and (role is None or sample.role == role)
        ]

    def label(self, role: Role) -> str:
        """Return what messages call a role."""
        if isinstance(role, int):
            return self.labels[role]
        return {KEEP: "the prompts to keep", TOGETHER: "the prompts together"}[role]

    def request(
        self, loras: Sequence[Lora], method: str = "linear", scale: float = 1.0, **params: Any
    ) -> Request:
        """Return the request for a merge of the recorded LoRAs, at the strengths they were recorded with."""
        return Request.of(
            loras, [each.weight for each in self.loras], method, scale=scale,
            text_weights=[each.text_weight for each in self.loras],
            blocks=[each.blocks for each in self.loras], **params,
        )  # fmt: skip

    def match(self, loras: Sequence[Lora]) -> list[Lora]:
        """Return the LoRAs in the order of the recording.

        Raises:
            IncompatibleLoraError: if they are not those that were recorded.
        """
        left = list(loras)
        found = []
        for recorded in self.loras:
            lora = next((each for each in left if identity(each) == recorded.sha256), None)
            if lora is None:
                raise IncompatibleLoraError(
                    f"the recording is of {', '.join(self.labels)}, and {recorded.name} is not among the "
                    "LoRAs that were given, or its file has changed; record these LoRAs first"
                )
            left.remove(lora)
            found.append(lora)
        if left:
            raise IncompatibleLoraError(
                f"{left[0].name} was not recorded; the recording is of {', '.join(self.labels)} (a LoRA at "
                "weight 0 is left out)"
            )
        return found

    def check(self, host: Host) -> None:
        """Refuse a model that the recording was not made with.

        Raises:
            IncompatibleLoraError: if the base model is another.
            ParameterError: if a recorded module is missing.
        """
        missing = {sample.module for sample in self.samples} - set(host.modules)
        if missing:
            raise ParameterError(f"the recording has calls of {min(missing)}, which this model does not have")
        if host.fingerprint() != self.base:
            raise IncompatibleLoraError(
                "the recording was made with another base model: its weights differ from this model's"
            )


def identity(lora: Lora) -> str:
    """Return what tells a LoRA from others: the SHA-256 of its file, or of its tensors if it is of none."""
    origin = lora.origin or lora
    return lora.sha256 or origin.sha256 or f"tensors {_hash_of_tensors(origin)}"


def _hash_of_tensors(lora: Lora) -> str:
    digest = hashlib.sha256()
    held = {**lora.layers, **lora.base_dependent}
    for name in sorted(held):
        digest.update(f"{name} {held[name].alpha_scale}".encode())
        for tensor in held[name].tensors:
            digest.update(content(tensor.detach().cpu()))
    return digest.hexdigest()
