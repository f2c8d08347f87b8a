"""Inspecting a LoRA for picture and sound: what is in which stream, in text, figures and blocks."""

import json

import pytest
import torch
from safetensors.torch import save_file

from merge_ops.analysis.facts import streams
from merge_ops.analysis.plots import draw
from merge_ops.analysis.study import study
from merge_ops.blocks.order import in_model_order, section_of
from merge_ops.lora import Lora, LowRank
from tests.cli.test_commands import run_here

LAYERS = {"attn1.to_q": 3.0, "audio_attn1.to_q": 4.0, "audio_to_video_attn.to_q": 0.0, "ff.net.2": 0.0}


def lora(name, layers=LAYERS):
    """Two blocks; each layer is one entry of the given size."""
    up, down = torch.zeros(8, 1), torch.zeros(1, 8)
    up[0] = down[0, 0] = 1.0
    return Lora(
        name,
        {
            f"transformer.transformer_blocks.{i}.{part}": LowRank(up * size, down.clone(), 1.0)
            for i in range(2)
            for part, size in layers.items()
        },
    )


def test_shares_and_advice():
    """By energy: 16 of 25 in sound."""
    assert streams(lora("voice")) == pytest.approx({"audio": 0.64, "video": 0.36})
    found = study([lora("voice"), lora("image", {"attn1.to_q": 1.0})])
    (said,) = [sentence for sentence in found.advice if "audio" in sentence]
    assert said.startswith("64 % of voice's energy is in audio layers and 36 % in video layers")
    assert [fact["streams"] for fact in found.to_dict()["loras"]] == [
        pytest.approx(streams(lora("voice"))),
        {},
    ]


def test_each_stream_has_its_blocks():
    """In charts, the sound of all blocks follows their picture, under a heading of its own."""
    found = study([lora("voice")])
    assert [section_of(block) for block in found.norms[0]] == [
        ("transformer blocks", "0"), ("transformer blocks", "1"),
        ("transformer blocks, audio", "0"), ("transformer blocks, audio", "1"),
    ]  # fmt: skip
    assert list(found.norms[0].values()) == pytest.approx([3, 3, 4, 4])
    assert in_model_order(found.norms[0]) == list(found.norms[0])
    assert draw(found, "norms").size[0] > 0


def test_on_the_command_line(tmp_path, capsys):
    """A file as trainers write it: the sentence, and the shares as JSON."""
    tensors = {}
    for name, layer in lora("voice").layers.items():
        key = name.replace("transformer.", "diffusion_model.", 1)
        tensors |= {f"{key}.lora_A.weight": layer.down, f"{key}.lora_B.weight": layer.up}
    save_file(tensors, tmp_path / "voice.safetensors")
    code, out, _ = run_here(capsys, "inspect", str(tmp_path / "voice.safetensors"))
    assert code == 0 and "64 % of voice's energy is in audio layers" in out
    code, out, _ = run_here(capsys, "inspect", str(tmp_path / "voice.safetensors"), "--json")
    assert json.loads(out)["loras"][0]["streams"] == pytest.approx({"audio": 0.64, "video": 0.36})
