"""Saving: what is refused, that nothing is left behind after a failure, and what the metadata says."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from merge_ops import MergeError, ParameterError
from merge_ops.saving import verified

SHAPES = {"lora_unet_mid_block_attentions_0_proj_in": (24, 20), "lora_unet_conv_in": (16, 4, 3, 3)}


@pytest.fixture
def loras(write, kohya_tensors):
    said = {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"}
    notes = [said | {"ss_v2": "False", "sshs_model_hash": "1"}, said | {"ss_v2": "True"}]
    return [
        merge_ops.load(write(kohya_tensors(SHAPES, (4,), 2.0, seed), note, f"{name}.safetensors"))
        for seed, (name, note) in enumerate(zip("ab", notes, strict=True))
    ]


@pytest.fixture
def merged(loras):
    return merge_ops.merge(loras, [0.7, 0.3], "ties", density=0.4, rank=3, scale=1.5, seed=8)


@pytest.fixture
def folder(tmp_path):
    """An empty folder to save into."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x.safetensors", {"format": "kohja"}, "did you mean 'kohya'"),
        ("x.safetensors", {"dtype": torch.int8}, "use float16, bfloat16 or float32"),
        ("x.safetensors", {"rank": 0}, "rank must be 1 or more"),
        ("x.pt", {}, r"'x.pt' must end in .safetensors"),
        ("x", {}, r"'x' must end in .safetensors"),
        ("x.safetensors", {"format": "peft"}, "writes a folder"),
        ("nowhere/x.safetensors", {}, "the folder 'nowhere' does not exist"),
    ],
)
def test_requests_that_are_refused(name, options, message, merged, folder):
    with pytest.raises(ParameterError, match=message):
        merge_ops.save(merged, folder / name, **options)
    assert list(folder.iterdir()) == []


def test_an_existing_file_is_kept_unless_asked(merged, folder):
    path = folder / "x.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(ParameterError, match=r"x.safetensors already exists"):
        merge_ops.save(merged, path)
    assert path.read_bytes() == b"precious"
    merge_ops.save(merged, path, overwrite=True)
    assert len(merge_ops.load(path).layers) == 2
    assert list(folder.iterdir()) == [path]


def test_an_existing_folder_keeps_its_other_files(merged, folder):
    (folder / "x").mkdir()
    (folder / "x" / "tokenizer.json").write_text("precious")
    with pytest.raises(ParameterError, match="x already exists"):
        merge_ops.save(merged, folder / "x", format="peft")
    merge_ops.save(merged, folder / "x", format="peft", overwrite=True)
    merge_ops.save(merged, folder / "x", format="peft", overwrite=True)
    names = {path.name for path in (folder / "x").iterdir()}
    assert names == {"tokenizer.json", "adapter_config.json", "adapter_model.safetensors"}
    assert [path.name for path in folder.iterdir()] == ["x"]


def test_a_folder_is_not_replaced_by_a_file_nor_a_file_by_a_folder(merged, folder):
    (folder / "x.safetensors").mkdir()
    (folder / "y").write_text("precious")
    with pytest.raises(ParameterError, match="is a folder"):
        merge_ops.save(merged, folder / "x.safetensors", overwrite=True)
    with pytest.raises(ParameterError, match="is a file"):
        merge_ops.save(merged, folder / "y", format="peft", overwrite=True)
    assert (folder / "y").read_text() == "precious"


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_a_file_that_appears_meanwhile_is_kept(form, merged, folder):
    path = folder / ("x.safetensors" if form == "kohya" else "x")

    def intrude(done, total, layer):
        if done == 1 and form == "kohya":
            path.write_bytes(b"precious")
        elif done == 1:
            path.mkdir()
            (path / "adapter_config.json").write_text("precious")

    with pytest.raises(ParameterError, match="already exists"):
        merge_ops.save(merged, path, format=form, progress=intrude)
    kept = path if form == "kohya" else path / "adapter_config.json"
    assert kept.read_bytes() == b"precious"
    assert list(folder.iterdir()) == [path]


def test_a_file_system_without_hard_links(merged, folder, monkeypatch):
    def refuse(source, target):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    merge_ops.save(merged, folder / "x.safetensors")
    assert [path.name for path in folder.iterdir()] == ["x.safetensors"]
    assert len(merge_ops.load(folder / "x.safetensors").layers) == 2


def damage(kind):
    """Stand-in for a disk that loses or changes what is written; the writing itself is the real one."""

    def write(tensors, file, metadata):
        if kind == "layer lost":
            tensors = dict(list(tensors.items())[:-3])
        if kind == "layer added":
            tensors = tensors | {
                "lora_unet_conv_out.lora_up.weight": torch.ones(4, 1),
                "lora_unet_conv_out.lora_down.weight": torch.ones(1, 4),
            }
        save_file(tensors, file, metadata)
        if kind == "cut off":
            os.truncate(file, Path(file).stat().st_size - 7)
        if kind == "nothing written":
            os.truncate(file, 3)
        if kind == "bit flipped":
            raw = bytearray(Path(file).read_bytes())
            raw[-1] ^= 1
            Path(file).write_bytes(raw)

    return write


@pytest.mark.parametrize("kind", ["cut off", "nothing written", "bit flipped", "layer lost", "layer added"])
@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_a_damaged_file_never_gets_its_name(kind, form, merged, folder, monkeypatch):
    monkeypatch.setattr(verified, "save_file", damage(kind))
    with pytest.raises(MergeError):
        merge_ops.save(merged, folder / ("x.safetensors" if form == "kohya" else "x"), format=form)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("step", [0, 1])
def test_cancelling_leaves_nothing_behind(form, step, merged, folder):
    class Cancelled(BaseException):
        pass

    def cancel(done, total, layer):
        assert total == 2
        if done == step:
            raise Cancelled(layer)

    with pytest.raises(Cancelled):
        merge_ops.save(
            merged, folder / ("x" if form == "peft" else "x.safetensors"), format=form, progress=cancel
        )
    assert list(folder.iterdir()) == []


def test_progress_and_report(merged, folder):
    calls = []
    report = merge_ops.save(merged, folder / "x.safetensors", progress=lambda *call: calls.append(call))
    assert [call[0] for call in calls] == [0, 1, 2]
    assert [call[2] for call in calls] == [*merged.layers, ""]
    assert report.size == (folder / "x.safetensors").stat().st_size
    assert [line.name for line in report.layers] == list(merged.layers)
    assert json.loads(json.dumps(report.to_dict()))["format"] == "kohya"


def test_others_may_read_the_file_as_any_other_file(tmp_path, make_lora):
    """A saved LoRA has the permissions that a new file gets here."""
    merge_ops.save(
        merge_ops.merge([make_lora(shapes={"unet.conv_in": (8, 8)})]),
        tmp_path / "a.safetensors",
        format="kohya",
    )
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode
