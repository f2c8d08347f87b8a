"""Recording a model with each LoRA alone, without any, and with all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..blocks import BlockStrengths
from ..errors import MergeError, ParameterError
from ..lora import Lora
from ..merging.merge import carry_out
from ..merging.merged import Merged
from ..merging.request import Request
from ..progress import Progress
from .capture import Store, captured
from .host import Host
from .measured import add_distances
from .recording import RecordedLora, Recording, identity
from .samples import KEEP, TOGETHER, Role

BUDGET = 10**9  # bytes

Sampling = Callable[[], object]


def record(
    host: Host,
    loras: Sequence[Lora],
    run: Callable[[Lora], object],
    *,
    weights: Sequence[float] | None = None,
    text_weights: Sequence[float] | None = None,
    blocks: Sequence[str | BlockStrengths | None] | None = None,
    keep: Sampling | None = None,
    together: Sampling | Sequence[tuple[Sequence[Lora], Sampling]] | None = None,
    prompts: Sequence[Sequence[str]] | None = None,
    keep_prompts: Iterable[str] = (),
    together_prompts: Iterable[str] = (),
    budget: int = BUDGET,
    held_out: float = 0.2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Recording:
    """Record what each LoRA does to a model: the inputs and outputs of its modules, kept in CPU memory.

    >>> host = merge_ops.models.hosts.DiffusersHost(pipe)
    >>> def run(lora): pipe(prompts[lora.name], num_inference_steps=8)
    >>> recording = record(host, loras, run, keep=lambda: pipe("a photo"))

    Args:
        host: the base model.
        loras: what is to be merged; one at weight 0 is left out.
        run: samples with one LoRA, which has already been added to the model, on prompts of its own. One
            prompt is enough for a subject; a style needs three to five with different subjects.
        weights: the strength of each LoRA in the merge, 1.0 by default; it is recorded at that strength.
        text_weights: the strengths in text encoders; ``weights`` by default.
        blocks: strengths by block, as in ``merge``.
        keep: samples without any LoRA, on prompts whose results must stay as they are.
        together: samples on prompts that name several LoRAs: no single LoRA can teach what they show
            together. A function samples with the linear merge of all LoRAs; pairs ``(LoRAs, function)`` each
            with the linear merge of those LoRAs, which teaches more where there are others that spoil it.
        prompts: the prompts of each LoRA, to be written down in recipes; ``keep_prompts`` and
            ``together_prompts`` likewise.
        budget: bytes of memory for all samples; where there are more, a fair choice of each LoRA's is kept.
        held_out: the share of samples that is kept for measuring, and not learned from.
        seed: decides which samples are kept, and which are held out.
        progress: called as ``progress(done, total, what)``; an exception raised in it ends the recording.

    Raises:
        ParameterError: for LoRAs or strengths that ``merge`` would refuse too, or if none is left.
        MergeError: if ``run`` called no recorded module.
    """
    loras, request, told = _without_zeros(
        list(loras), Request.of(loras, weights, text_weights=text_weights, blocks=blocks), prompts
    )
    plan = [_alone(host, loras, request, i, run) for i in range(len(loras))]
    if keep is not None:
        plan.append(_Run(KEEP, "the prompts to keep", None, keep))
    several = [(loras, together)] if callable(together) else (together or ())
    for named, sampling in several:
        chosen = [index for index, lora in enumerate(loras) if any(lora is each for each in named)]
        if len(chosen) > 1:
            plan.append(
                _Run(TOGETHER, "the prompts together", _sum_of(host, loras, request, chosen), sampling)
            )
    roles = {part.role for part in plan}
    store = Store(budget // (len(roles) * max(1, len(host.modules))), seed)
    for step, part in enumerate(plan):
        if progress is not None:
            progress(step, len(plan), part.what)
        with host.applied(part.merged), captured(host, part.role, store):
            part.sampling()
        if not store.count(part.role):
            raise MergeError(
                f"sampling for {part.what} called none of {', '.join(host.modules)}; nothing was recorded"
            )
    if progress is not None:
        progress(len(plan), len(plan), "")
    recording = Recording(
        tuple(store.chosen(held_out)), _written_down(loras, request, told), host.fingerprint(), seed,
        tuple(keep_prompts), tuple(together_prompts),
    )  # fmt: skip
    return add_distances(recording, host)


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """One sampling run: what is in the model, and what to call."""

    role: Role
    what: str
    merged: Merged | None
    sampling: Sampling


def _alone(
    host: Host, loras: Sequence[Lora], request: Request, index: int, run: Callable[[Lora], object]
) -> _Run:
    lora = loras[index]
    return _Run(index, lora.name, alone(host, loras, request, index), lambda: run(lora))


def _sum_of(host: Host, loras: Sequence[Lora], request: Request, chosen: Sequence[int]) -> Merged:
    return carry_out(_part_of(request, chosen), [loras[index] for index in chosen], host.base)


def _written_down(
    loras: Sequence[Lora], request: Request, told: Sequence[tuple[str, ...]]
) -> tuple[RecordedLora, ...]:
    blocks = [None if each is None else str(each) for each in request.blocks]
    return tuple(
        RecordedLora(lora.name, identity(lora), weight, text_weight, text, prompts)
        for lora, weight, text_weight, text, prompts in zip(
            loras, request.weights, request.text_weights, blocks, told, strict=True
        )
    )


def alone(host: Host, loras: Sequence[Lora], request: Request, index: int) -> Merged:
    """Return one LoRA merged alone, at the strengths that it has in a request."""
    return _sum_of(host, loras, request, [index])


def _part_of(request: Request, chosen: Sequence[int]) -> Request:
    """The request for some of the LoRAs."""
    return replace(
        request, weights=tuple(request.weights[index] for index in chosen),
        text_weights=tuple(request.text_weights[index] for index in chosen),
        blocks=tuple(request.blocks[index] for index in chosen),
    )  # fmt: skip


def _without_zeros(
    loras: list[Lora], request: Request, prompts: Sequence[Sequence[str]] | None
) -> tuple[list[Lora], Request, list[tuple[str, ...]]]:
    """The LoRAs, request and prompts without those that are at weight 0 everywhere."""
    if prompts is not None and len(prompts) != len(loras):
        raise ParameterError(f"{len(loras)} LoRAs need {len(loras)} entries of prompts, not {len(prompts)}")
    told = [tuple(each) for each in prompts] if prompts is not None else [()] * len(loras)
    used = [i for i in range(len(loras)) if request.weights[i] or request.text_weights[i]]
    if not used:
        raise ParameterError("every LoRA is at weight 0, so there is nothing to record")
    return [loras[i] for i in used], _part_of(request, used), [told[i] for i in used]
