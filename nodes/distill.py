"""Distill LoRAs: one LoRA that answers as each of the recorded LoRAs did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ..merge_ops.errors import ParameterError, did_you_mean
from ..merge_ops.learning.defaults import LEARNING_RATE, STARTS, STEPS
from .inputs import CATEGORY, LORA_MODEL, RECORDING, lora_low_output
from .model.stopping import stoppable
from .status import SAYS, Said, StatusLine
from .values.learning_pictures import draw_curve, percent

if TYPE_CHECKING:
    from ..merge_ops.learning import DistillProgress, Retention
    from ..merge_ops.merging.merged import Merged
    from .model.learning.recorded import RecordedLoras
    from .model.merges.lora_model import MergedLoraModel

_KNOWN = ("recording", "steps", "rank", "seed", "start", "learning_rate", "batch")
_PREVIEW = 512  # pixels of the longer side
_NOTICEABLE = 0.005  # a share that is shown as one percent more


class LoraAlloyDistill(io.ComfyNode):
    """Trains the factors of a merge; MODEL itself is not trained and not changed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LoraAlloyDistill",
            display_name="Distill LoRAs",
            category=CATEGORY,
            description=(
                "Train one LoRA that answers as each recorded LoRA did alone. It keeps more of them than "
                "adding them up, most of all from three LoRAs on. Needs no images; takes seconds to minutes."
            ),
            search_aliases=["distill lora", "train merge", "lora interference"],
            inputs=[
                RECORDING.Input("recording", tooltip="What the LoRAs do, from Record LoRAs."),
                io.Int.Input(
                    "steps", default=STEPS, min=1, max=100_000, optional=True,
                    tooltip="Training steps. A few dozen keep most of each LoRA already.",
                ),
                io.Int.Input(
                    "rank", default=0, min=0, max=4096, optional=True,
                    tooltip="Rank of the result. 0 uses the sum of the LoRAs' ranks; 8 to 32 gives a small "
                            "file.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**53, optional=True, control_after_generate="fixed",
                    tooltip="Seed of the order in which the recorded calls are learned from.",
                ),
                io.Combo.Input(
                    "start", options=list(STARTS), default=STARTS[0], optional=True, advanced=True,
                    tooltip="The merge that training begins with.",
                ),
                io.Float.Input(
                    "learning_rate", default=LEARNING_RATE, min=1e-6, max=10, step=0.001, optional=True,
                    advanced=True,
                    tooltip="Relative to the size of the factors. Lower it if the loss jumps up and down.",
                ),
                io.Int.Input(
                    "batch", default=0, min=0, max=4096, optional=True, advanced=True,
                    tooltip="Recorded calls a step. 0 chooses it by their size; if memory runs out, they are "
                            "taken in smaller parts.",
                ),
            ],
            outputs=[
                LORA_MODEL.Output(display_name="lora", tooltip="The trained LoRA, for Save LoRA."),
                io.Model.Output(display_name="model", tooltip="The recorded model with the trained LoRA."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder with the trained LoRA."),
                io.String.Output(display_name="report", tooltip="What is kept of each LoRA, beside linear."),
                lora_low_output(),
                io.Model.Output(
                    display_name="model_low", tooltip="The recorded low-noise model with lora_low."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            accept_all_inputs=True,
            **SAYS,
        )  # fmt: skip

    @classmethod
    def execute(cls, recording: RecordedLoras, **given: Any) -> io.NodeOutput:
        """Train, measure, patch."""
        from .model.learning.recorded import TITLES

        for name in given:
            if name not in _KNOWN:
                raise ParameterError(f"unknown input {name!r}{did_you_mean(name, _KNOWN)}")
        status = StatusLine(cls)
        chosen = {name: value for name, value in given.items() if value is not None}
        for name in ("rank", "batch"):
            chosen[name] = chosen.get(name) or None
        sides, trained = recording.sides, list[_Trained]()
        with stoppable(getattr(cls.hidden, "unique_id", None)) as is_stopped:
            for title, side in zip(TITLES if len(sides) > 1 else ("",), sides, strict=True):
                trained.append(_train(title, side, status, is_stopped, chosen))
        high, low = trained[0], trained[1] if len(trained) > 1 else _Trained.nothing()
        lines = [line for each in trained for line in each.lines]
        if len(trained) > 1:
            lines.append(_of_both(trained))
        notes = list(dict.fromkeys(note for each in trained for note in each.notes))
        report = "\n".join([*lines, *notes])
        said = Said("\n".join(lines), notes)
        return io.NodeOutput(high.lora, high.model, high.clip, report, low.lora, low.model, ui=said)


class _Trained(NamedTuple):
    """What was trained with one model, and what is said of it."""

    lora: MergedLoraModel
    model: Any
    clip: Any
    lines: list[str]
    notes: list[str]
    kept: float = 0.0
    linear: float = 0.0

    @classmethod
    def nothing(cls) -> _Trained:
        """Return what there is of a model that was not recorded."""
        from .model.merges.lora_model import MergedLoraModel

        return cls(MergedLoraModel(None), None, None, [], [])


def _train(
    title: str,
    recording: RecordedLoras,
    status: StatusLine,
    is_stopped: Callable[[], bool],
    chosen: dict[str, Any],
) -> _Trained:
    """Train, measure, and patch one model; CLIP is patched with the first of a pair."""
    from ..merge_ops.learning import distill
    from .model.learning.recorded import TITLES
    from .model.merges.lora_model import MergedLoraModel
    from .model.patches.clones import patch_clones

    began, watch = status.seconds, _Watch(status, title)
    merged = distill(
        recording.recording, recording.host, recording.loras, progress=watch.report, stop=is_stopped,
        **chosen,
    )  # fmt: skip
    clip = None if title == TITLES[1] else recording.clip
    patched = patch_clones(merged, recording.fitted, recording.model, clip)
    linear = recording.measure(recording.merge("linear", 1.0, None))
    kept = recording.measure(merged)
    head = _heading(merged, watch, is_stopped(), status.seconds - began)
    lines = [f"{title}: {head}" if title else head, *compare(kept, linear)]
    notes = [f"{title}: {note}" if title else note for note in (*watch.notes, *patched.lines)]
    lora = MergedLoraModel(merged, recording.fitted.stems)
    return _Trained(lora, patched.model, patched.clip, lines, notes, kept.mean, linear.mean)


def _of_both(trained: Sequence[_Trained]) -> str:
    kept, linear = (
        sum(each) / len(trained) for each in ([t.kept for t in trained], [t.linear for t in trained])
    )
    return f"both models: kept {percent(kept)} on average (linear {percent(linear)})"


class _Watch:
    """Shows a training on its node: the curve, the time that is left; and ends it when it was cancelled."""

    def __init__(self, status: StatusLine, title: str = "") -> None:
        self._status = status
        self._of = f"{title}, " if title else ""
        self._bar = comfy.utils.ProgressBar(1)
        self._module = ""
        self._losses: list[float] = []
        self._kept: dict[int, float] = {}
        self.notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Steps of the module that was trained last."""
        return len(self._losses)

    def report(self, now: DistillProgress) -> None:
        """Take a step of the training."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if now.module != self._module:
            self._module, self._losses, self._kept = now.module, [], {}
        self._losses.append(now.loss)
        self.notes = now.notes
        if now.retention is not None:
            shares = now.retention.modules[now.module].values()
            self._kept[now.step] = sum(shares) / len(shares)
        text = f"{self._of}{now.module}, step {now.step} of {now.steps}, {now.seconds_left:.0f} s left"
        if self._kept:
            text += f", kept {percent(list(self._kept.values())[-1])}"
        if self._status.is_due or now.retention is not None:
            picture = draw_curve(self._losses, now.steps, self._kept)
            self._bar.update_absolute(now.step, now.steps, ("PNG", picture, _PREVIEW))
        self._status.show_progress(text)


def compare(kept: Retention, linear: Retention) -> list[str]:
    """Return a line for each LoRA: what is kept of it, beside linear, and where distilling did not help."""
    lines = [f"kept {percent(kept.mean)} on average (linear {percent(linear.mean)})"]
    for name, share in kept.loras.items():
        line = f"{name}: {percent(share)} (linear {percent(linear.loras[name])})"
        if share < linear.loras[name] + _NOTICEABLE:
            line += "; distilling did not help this LoRA"
        lines.append(line)
    for module, shares in list(kept.modules.items())[1:]:
        mean, before = (sum(each.values()) / len(each) for each in (shares, linear.modules[module]))
        lines.append(f"{module}: {percent(mean)} on average (linear {percent(before)})")
    return lines


def _heading(merged: Merged, watch: _Watch, stopped: bool, seconds: float) -> str:
    rank = merged.request.rank
    size = "the sum of the ranks" if rank is None else f"rank {rank}"
    steps = f"stopped after {watch.steps} steps" if stopped else f"{watch.steps} steps"
    return (
        f"distilled {len(merged.loras)} LoRAs, {len(merged.layers)} layers, {size}, {steps}, {seconds:.0f} s"
    )
