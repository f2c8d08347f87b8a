"""Adapters that need the base model, and whole weights, from the command line and from a recipe."""

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from tests.cli.test_commands import run_here

NAME = "unet.mid_block.attentions.0.proj_in"


@pytest.fixture
def files(tmp_path):
    """Two DoRAs, the second with another set weight, and the base model's file."""
    torch.manual_seed(0)
    stem = f"lora_{NAME.replace('.', '_')}"
    for name, value in (("ink", 1.0), ("mia", 2.0)):
        tensors = {
            f"{stem}.lora_up.weight": torch.randn(6, 2),
            f"{stem}.lora_down.weight": torch.randn(2, 5),
            f"{stem}.dora_scale": torch.rand(6, 1) + 1,
            "lora_unet_conv_norm_out.set_weight": torch.full((4,), value),
        }
        save_file(tensors, tmp_path / f"{name}.safetensors")
    save_file({f"{NAME.removeprefix('unet.')}.weight": torch.randn(6, 5)}, tmp_path / "base.safetensors")
    return tmp_path


@pytest.mark.parametrize("reader", merge_ops.readers.READERS)
def test_merging_against_a_base(reader, files, capsys):
    """The same as the library; the recipe in the file makes it again with ``--base``."""
    loras = [str(files / f"{name}.safetensors") for name in ("ink", "mia")]
    out, again, base = (str(files / f"{name}.safetensors") for name in ("out", "again", "base"))
    how = (
        "--base",
        base,
        "--reader",
        reader,
        "--keep",
        "mia",
        "--method",
        "ties",
        "--rank",
        "5",
        "--dtype",
        "float32",
    )
    code, _, err = run_here(capsys, "merge", *loras, *how, "-o", out)
    assert code == 0, err
    wanted = merge_ops.merge(
        [merge_ops.load(path) for path in loras], method="ties", base=base, reader=reader, keep="mia"
    )
    saved = merge_ops.load(out)
    assert torch.allclose(saved.layers[NAME].delta(), wanted.delta(NAME), atol=1e-5)
    assert torch.equal(saved.whole_weights["unet.conv_norm_out"].value, torch.full((4,), 2.0))
    code, _, err = run_here(capsys, "recipe", "run", out, "--base", base, "--dtype", "float32", "-o", again)
    assert code == 0, err
    assert torch.equal(merge_ops.load(again).layers[NAME].delta(), saved.layers[NAME].delta())


def test_what_is_missing_is_said(files, capsys):
    loras = [str(files / f"{name}.safetensors") for name in ("ink", "mia")]
    assert "give it as --base" in run_here(capsys, "merge", *loras, "--dry-run")[2]
    base = str(files / "base.safetensors")
    assert "--keep ink" in run_here(capsys, "merge", *loras, "--base", base, "--dry-run")[2]
