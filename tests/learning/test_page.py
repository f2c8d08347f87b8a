"""The code of docs/learning.md runs as it stands, with a tiny pipeline and a tiny language model."""

import re
from pathlib import Path

import pytest
import torch

from merge_ops import learning
from merge_ops.models.hosts import DiffusersHost
from tests.learning.test_pipelines import adapter
from tests.learning.test_text import sentences, tokenizer  # noqa: F401  (a fixture)
from tests.models.conftest import sd15  # noqa: F401  (a fixture)
from tests.text.models import KINDS, make_model, save_adapters

PAGE = (Path(__file__).parents[2] / "docs" / "learning.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_code(sd15, tokenizer, tmp_path, monkeypatch, capsys):  # noqa: F811
    """The first block with a pipeline, the second with a text model, at fewer steps than the default."""
    import merge_ops

    for part in (sd15.unet, sd15.text_encoder):
        part.requires_grad_(False)
    for seed, name in enumerate(("mia", "ink")):
        adapter(sd15, tmp_path, seed).rename(tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {"pipe": sd15}
    exec(first.replace("rank=32", "rank=32, steps=10"), names)  # noqa: S102
    plain, distilled = [eval(line) for line in capsys.readouterr().out.splitlines()]  # noqa: S307
    assert set(plain) == set(distilled) == {"mia", "ink"}
    back = merge_ops.load(tmp_path / "both.safetensors")
    kept = learning.retention(names["recording"], DiffusersHost(sd15), merge_ops.merge([back]))
    assert kept.mean > sum(plain.values()) / 2 - 0.05

    folders = save_adapters("llama", KINDS["llama"][1], tmp_path)
    names = {
        "model": make_model("llama").requires_grad_(False), "tokenizer": tokenizer, "learning": learning,
        "loras": [merge_ops.load(folders[name]) for name in "ab"],
        "texts_of_a": sentences(0), "texts_of_b": sentences(1),
    }  # fmt: skip
    exec(second, names)  # noqa: S102
    assert all(torch.isfinite(names["distilled"].delta(name)).all() for name in names["distilled"].layers)
