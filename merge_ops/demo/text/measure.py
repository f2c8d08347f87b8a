"""Merging, applying and scoring: the results that the table shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch

from ... import Merged, load
from ...merging import merge
from ...models.applied import AppliedMerge
from .encoder import Encoder
from .learned import Learner
from .plan import LORAS, ROWS, Row
from .tasks import TASKS, texts

Scores = dict[str, float]  # task -> fraction of its test texts that are right


@dataclass(frozen=True, slots=True)
class Result:
    """The scores of one run."""

    base: Scores
    alone: dict[str, Scores]  # by LoRA
    merged: dict[str, Scores]  # by title of the row
    agreement: dict[str, float]  # by title: relative distance of our deltas from stock PEFT's
    rows: tuple[Row, ...]
    count: int  # test texts a task
    seed: int
    peft: str | None  # its version, if it computed its rows

    def kept(self, scores: Scores) -> float:
        """Return a merge's gain over the base as a share of what the LoRAs gain, each on its own task."""
        gained = sum(scores[task] - self.base[task] for task in TASKS)
        return gained / sum(self.alone[task][task] - self.base[task] for task in TASKS)


class Bench:
    """The encoder, the LoRAs and the test texts, loaded once."""

    def __init__(self, seed: int, split: str = "test") -> None:
        self.encoder = Encoder()
        self.heads = self.encoder.heads()
        self.texts = {task: texts(task, split) for task in TASKS}
        self.loras = [load(folder) for folder in LORAS.values()]
        self.modules = dict(self.encoder.model.named_modules())
        self.seed = seed

    @cached_property
    def learner(self) -> Learner:
        """The recording of all LoRAs, made when a row first needs it."""
        return Learner(self.encoder, self.heads, dict(zip(LORAS, self.loras, strict=True)), TASKS)

    def score(self, model: Any = None) -> Scores:
        """Score the encoder as it is, or a model that wraps one."""
        return {task: self.encoder.right(*self.texts[task], head, model) for task, head in self.heads.items()}

    def applied(self, merged: Merged) -> AppliedMerge:
        """Add a merge to the encoder's weights; the end of the ``with`` block takes it out again."""
        return AppliedMerge(self.modules.get, merged)

    def scored(self, merged: Merged) -> Scores:
        """Score the encoder with a merge added to its weights."""
        with self.applied(merged):
            return self.score()

    def merge(self, row: Row) -> Merged:
        """Merge all LoRAs at weight 1 by one method."""
        if row.learned:
            return self.learner.merge(row.learned, **row.options)
        options: dict[str, Any] = dict(row.options)
        weight = 1 / len(self.loras) if options.pop("average", False) else 1.0
        return merge(self.loras, [weight] * len(self.loras), seed=self.seed, **options)


class StockPeft:
    """A separate PEFT model with the same adapters, merged and run by PEFT alone."""

    def __init__(self, seed: int) -> None:
        from peft import PeftModel

        factory: Any = PeftModel
        names = list(LORAS)
        self.model = factory.from_pretrained(Encoder().model, str(LORAS[names[0]]), adapter_name=names[0])
        for name in names[1:]:
            self.model.load_adapter(str(LORAS[name]), adapter_name=name)
        self.model.eval()
        self.seed = seed

    def merge(self, row: Row) -> None:
        """Merge all LoRAs at weight 1 by ``add_weighted_adapter`` and make the result the active adapter."""
        if "merged" in self.model.peft_config:
            self.model.delete_adapter("merged")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # PEFT draws DARE's masks from the global generator
            weights = [1.0] * len(LORAS)
            self.model.add_weighted_adapter(
                list(LORAS), weights, "merged", svd_full_matrices=False, **row.options
            )
        self.model.set_adapter("merged")

    def distance(self, merged: Merged) -> float:
        """Return the distance of our deltas from PEFT's over all layers, relative to PEFT's norm."""
        apart = whole = 0.0
        for name in merged.layers:
            wanted = self.model.base_model.model.get_submodule(name).get_delta_weight("merged").detach()
            apart += float((merged.delta(name) - wanted).square().sum())
            whole += float(wanted.square().sum())
        return math.sqrt(apart / whole)


def measure(seed: int, rows: Sequence[Row] = ROWS, split: str = "test") -> Result:
    """Run everything; afterwards the weights of the encoder must be the same, bit for bit."""
    bench = Bench(seed, split)
    before = {name: value.clone() for name, value in bench.encoder.model.state_dict().items()}
    stock = StockPeft(seed) if find_spec("peft") and any(row.is_peft for row in rows) else None
    merged: dict[str, Scores] = {}
    agreement: dict[str, float] = {}
    for row in rows:
        result = bench.merge(row)
        if stock is None or not row.is_peft:
            merged[row.title] = bench.scored(result)
            continue
        stock.merge(row)
        merged[row.title] = bench.score(stock.model)
        if "dare" not in row.options["combination_type"]:  # PEFT draws other random masks
            agreement[row.title] = stock.distance(result)
    outcome = Result(
        base=bench.score(),
        alone={lora.name: bench.scored(merge([lora])) for lora in bench.loras},
        merged=merged,
        agreement=agreement,
        rows=tuple(rows),
        count=len(next(iter(bench.texts.values()))[0]),
        seed=seed,
        peft=_version() if stock else None,
    )
    if not all(torch.equal(value, before[name]) for name, value in bench.encoder.model.state_dict().items()):
        raise RuntimeError("the encoder's weights were not restored")
    return outcome


def _version() -> str:
    from importlib.metadata import version

    return version("peft")
