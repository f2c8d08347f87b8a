"""The Python code of the README runs as it stands, on a tiny pipeline."""

import re
from pathlib import Path

import torch

import merge_ops
from tests.models.test_diffusers import assert_same_weights, weights_of, write_lora

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_code_runs(sd15, tmp_path, monkeypatch):
    """It draws with both LoRAs, leaves the pipeline as it was, and saves what it merged."""
    monkeypatch.chdir(tmp_path)
    write_lora(sd15, tmp_path, "ink", rank=4, alpha=4, seed=1)
    mia = merge_ops.load(write_lora(sd15, tmp_path, "mia", rank=2, alpha=1, seed=2))
    unet = {name: layer for name, layer in mia.layers.items() if name.startswith("unet.")}
    mia = merge_ops.Lora("mia", unet)  # a PEFT folder is for one model
    merge_ops.save(merge_ops.merge([mia]), "mia_adapter", format="peft")
    before = weights_of(sd15)
    code = re.search(r"## Ten lines of Python\n+```python\n(.*?)```", README, re.DOTALL)[1]
    names = {"pipe": sd15}
    torch.manual_seed(0)
    exec(code, names)  # noqa: S102
    assert_same_weights(sd15, before)
    torch.manual_seed(0)
    plain = sd15("mia, ink drawing").images[0]
    assert names["image"].size == plain.size and names["image"].tobytes() != plain.tobytes()
    assert merge_ops.load("both.safetensors").layers.keys() == names["merged"].layers.keys()
