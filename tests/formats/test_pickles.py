"""Pickled LoRAs are read only where that is asked for, as tensors and nothing else."""

import io
import json
import os
import pickle
import zipfile

import pytest
import torch

import merge_ops
from merge_ops import LoraFormatError
from merge_ops.cli import main

STEM = "lora_unet_mid_block_attentions_0_proj_in"
GOOD = {f"{STEM}.lora_up.weight": torch.ones(6, 2), f"{STEM}.lora_down.weight": torch.ones(2, 5)}
REAL = os.environ.get("LORA_ALLOY_REAL_LORAS")


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def pickled(tmp_path):
    """Writes what ``torch.save`` makes of something."""

    def to_file(content, name="some.pt", **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return to_file


def ask(path):
    with pytest.raises(LoraFormatError) as caught:
        merge_ops.load(path, allow_pickle=True)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".pth", ".PT"])
@pytest.mark.parametrize("content", [GOOD, {"state_dict": GOOD, "epoch": 3}])
def test_a_pickle_is_read_on_request(suffix, content, pickled):
    path = pickled(content, f"some{suffix}")
    with pytest.raises(LoraFormatError, match="allow_pickle=True"):
        merge_ops.load(path)
    (layer,) = merge_ops.load(path, allow_pickle=True).layers.values()
    assert torch.equal(layer.delta(), GOOD[f"{STEM}.lora_up.weight"] @ GOOD[f"{STEM}.lora_down.weight"])


def test_a_pickled_peft_folder(pickled, tmp_path):
    tensors = {f"base_model.model.q.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}
    pickled(tensors, "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    with pytest.raises(LoraFormatError, match="allow_pickle=True"):
        merge_ops.load(tmp_path)
    for path in (tmp_path, tmp_path / "adapter_model.bin"):
        assert merge_ops.load(path, allow_pickle=True).layers["q"].scale == 2


@pytest.mark.parametrize("zipped", [False, True])
def test_no_code_of_a_pickle_runs(zipped, pickled, tmp_path):
    """Neither of a pickle as it is, nor of one in an archive."""
    trap = tmp_path / "trap"
    path = tmp_path / "some.pt"
    path.write_bytes(pickle.dumps(Trap(str(trap))))
    if zipped:
        pickled({"a": Trap(str(trap))})
    ask(path)
    assert not trap.exists()


def test_memory_that_a_pickle_claims(pickled, tmp_path):
    """One number with strides of 0, an archive that is compressed, and the old format."""
    wide = torch.ones(1).expand(1 << 20, 1 << 20)
    assert "claims more memory" in ask(pickled({f"{STEM}.lora_up.weight": wide}))
    with (
        zipfile.ZipFile(pickled(GOOD)) as archive,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in archive.namelist():
            small.writestr(name, archive.read(name))
    assert "is compressed" in ask(tmp_path / "small.pt")
    assert "PyTorch 1.6" in ask(pickled(GOOD, _use_new_zipfile_serialization=False))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"<token>": torch.ones(768)}, "textual-inversion embedding"),
        ([torch.ones(2, 2)] * 6, "holds a list of 6"),
        (7, "holds a int"),
        ({1: torch.ones(1)}, "not tensors by name"),
        ({f"{STEM}.lora_up.weight": torch.ones(2, 2).to_sparse()}, "not a plain tensor"),
        ({f"{STEM}.lora_up.weight": torch.full((2, 2), float("nan"))}, "holds NaN"),
        ({"model.diffusion_model.a.weight": torch.ones(2, 2)}, "whole weights of a model"),
        ({}, "holds no LoRA"),
    ],
)
def test_pickles_of_something_else(content, message, pickled):
    assert message in ask(pickled(content))


def test_broken_archives(pickled, tmp_path):
    raw = pickled(GOOD).read_bytes()
    for cut in range(0, len(raw), 97):
        (tmp_path / "cut.pt").write_bytes(raw[:cut])
        ask(tmp_path / "cut.pt")
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    (tmp_path / "empty.pt").write_bytes(buffer.getvalue())
    ask(tmp_path / "empty.pt")


@pytest.mark.parametrize(
    ("count", "first"), [(128, "attn1.to_q"), (144, "attn1.to_q"), (48, "self_attn.k_proj")]
)
def test_lists_of_cloneofsimo(count, first, pickled):
    """Ups and downs in turn; the number of modules says which part of the model it is."""
    factors = [t for i in range(count) for t in (torch.full((3, 2), float(i + 1)), torch.ones(2, 3))]
    lora = merge_ops.load(pickled(factors), allow_pickle=True)
    assert len(lora.layers) == count
    name, layer = next(iter(lora.layers.items()))
    assert name.endswith(first)
    assert torch.equal(layer.delta(), torch.full((3, 3), 2.0))


def test_the_command_line_reads_pickles_on_request(pickled, tmp_path, capsys):
    path, out = str(pickled(GOOD)), str(tmp_path / "out.safetensors")
    assert main(["merge", path, "-o", out]) == 1
    assert "--allow-pickle" in capsys.readouterr().err
    assert main(["merge", path, "--allow-pickle", "-o", out]) == 0
    assert main(["inspect", path, "--allow-pickle"]) == 0
    assert (
        main(["resize", path, "--allow-pickle", "--rank", "1", "-o", str(tmp_path / "small.safetensors")])
        == 0
    )


# trained files are not part of the repository
@pytest.mark.skipif(REAL is None, reason="LORA_ALLOY_REAL_LORAS names no folder of trained files")
def test_a_list_that_was_trained():
    """128 modules of Stable Diffusion 2."""
    lora = merge_ops.load(f"{REAL}/cloneofsimo_lora_pop.pt", allow_pickle=True)
    assert len(lora.layers) == 128
    assert lora.layers["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"].weight_shape == (
        320,
        1024,
    )
