"""Recording the encoder with each LoRA alone on a few unlabelled texts, for the merges that learn from it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...learning import Recording, calibrate, distill, record
from ...lora import Lora
from ...merging.merged import Merged
from ...models.hosts import ModelHost
from ...models.modules import Modules
from ...models.transformers import patched
from .encoder import Encoder
from .tasks import Task

RECORDED = 80  # texts of each task: 64 to learn from, and 16 to see what is kept
STEPS, LEARNING_RATE = 40, 0.03  # chosen on the dev split


class Classifier(nn.Module):
    """The encoder with the frozen heads of the tasks; its outputs are cosines, (texts, labels)."""

    def __init__(self, encoder: Encoder, heads: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.encoder = encoder.model
        self.heads = {task: head.clone() for task, head in heads.items()}  # (labels, 384)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, task: str) -> Tensor:
        """Return the cosine of each text with the description of each label of a task."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mean = (states * attention_mask.unsqueeze(-1)).sum(dim=1)  # (texts, 384); a cosine needs no division
        found: Tensor = nn.functional.normalize(mean, dim=-1) @ self.heads[task].T
        return found


class ClassifierHost(ModelHost):
    """Records the classifier's calls, and trains what the LoRAs change: the encoder inside it."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__({"model": classifier}, Modules(classifier.encoder).find, classifier.encoder)
        self.classifier = classifier

    def applied(self, merged: Merged | None) -> AbstractContextManager[Any]:
        """Return a context in which the merge is added to the weights of the encoder."""
        return nullcontext() if merged is None else patched(self.classifier.encoder, merged)


class Learner:
    """Merges that need a recording of the encoder, which is made once, with each LoRA on its own texts.

    Args:
        encoder: the base model.
        heads: embedded labels of each task, (labels, 384).
        loras: the LoRA of each task, merged at weight 1.
        tasks: the tasks, for their training texts; the labels of the texts are not used.
    """

    def __init__(
        self,
        encoder: Encoder,
        heads: Mapping[str, Tensor],
        loras: Mapping[str, Lora],
        tasks: Mapping[str, Task],
    ) -> None:
        classifier = Classifier(encoder, heads)
        self.host = ClassifierHost(classifier)
        self.loras = list(loras.values())
        task_of = {id(lora): name for name, lora in loras.items()}

        def run(lora: Lora) -> None:
            task = task_of[id(lora)]
            classifier(**encoder.tokens(_some(tasks[task])), task=task)

        self.recording: Recording = record(self.host, self.loras, run, held_out=0.2)

    def merge(self, how: str, **options: Any) -> Merged:
        """Merge by ``calibrated`` or ``distilled``; ``options`` go to ``calibrate`` or ``distill``.

        Steps and learning rate are those of this demo unless they are given.
        """
        if how == "calibrated":
            return calibrate(self.recording, self.host, self.loras, **options)
        training = {"steps": STEPS, "learning_rate": LEARNING_RATE}
        return distill(self.recording, self.host, self.loras, **(training | options))


def _some(task: Task) -> list[str]:
    """Return the same few training texts of a task in every run."""
    words, _ = task.texts("train")
    generator = torch.Generator().manual_seed(0)
    return [words[index] for index in torch.randperm(len(words), generator=generator)[:RECORDED].tolist()]
