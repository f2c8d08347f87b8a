"""The sentence encoder as it is asked: a text and a task; it answers how near each label is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from merge_ops import Merged
from merge_ops.demo.text.encoder import Encoder
from merge_ops.models.hosts import ModelHost
from merge_ops.models.modules import Modules
from merge_ops.models.transformers import patched


class Classifier(nn.Module):
    """The encoder with the frozen heads of the tasks; its output are cosines, (texts, labels)."""

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
