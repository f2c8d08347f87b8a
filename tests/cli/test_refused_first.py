"""What is wrong with an output is said before anything is computed, by every command that writes.

The LoRAs here cannot be merged, and the model is not there: a sentence about the output came before that.
"""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from merge_ops.cli import main

STEM = "lora_unet_mid_block_attentions_0_proj_in"
OTHER = "lora_te_text_model_encoder_layers_0_mlp_fc1"
WRONG = {
    "exists.safetensors": "already exists",
    "CON.safetensors": "reserved by Windows",
    "x.txt": "must end in .safetensors",
    "gone/x.safetensors": "'gone' does not exist",
    "x\u200b.safetensors": "cannot be printed",
    "broken.safetensors": "a link that leads nowhere",
}


def lora(folder, name, size, stem=STEM):
    tensors = {f"{stem}.lora_up.weight": torch.ones(size, 2), f"{stem}.lora_down.weight": torch.ones(2, size)}
    save_file(tensors, folder / name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two LoRAs of different shapes, one for another part of a model, and a recipe of the first two."""
    for name, size, stem in (("a", 8, STEM), ("b", 12, STEM), ("text", 8, OTHER)):
        lora(tmp_path, f"{name}.safetensors", size, stem)
    sources = [{"name": name, "weight": 1.0} for name in "ab"]
    (tmp_path / "merge.json").write_text(json.dumps({"recipe": 1, "sources": sources, "method": "linear"}))
    (tmp_path / "exists.safetensors").write_bytes(b"kept")
    (tmp_path / "broken.safetensors").symlink_to("nowhere.safetensors")
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    save_file({"model.weight": torch.ones(2, 2)}, base / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, *args):
    code = main(list(map(str, args)))
    out, error = capsys.readouterr()
    assert code == 1 and out == "", out
    return error


COMMANDS = {
    "merge": ("merge", "a.safetensors", "b.safetensors", "--rank", "2"),
    "merge ties": ("merge", "a.safetensors", "b.safetensors", "--method", "ties"),
    "recipe": ("recipe", "run", "merge.json", "--rank", "2"),
    "resize": ("resize", "a.safetensors", "--rank", "2"),
    "distill": ("distill", "a.safetensors", "--model", "gone", "--prompt", "x"),
}


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["", "dry run"])
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("output", WRONG)
def test_an_output_is_checked_first(output, command, dry, folder, capsys):
    """Also in a dry run that names one."""
    before = sorted(folder.iterdir())
    assert WRONG[output] in said(capsys, *COMMANDS[command], "-o", output, *dry)
    assert sorted(folder.iterdir()) == before
    assert (folder / "exists.safetensors").read_bytes() == b"kept"


@pytest.mark.parametrize("command", ["merge", "recipe"])
def test_the_checks_do_come_before_the_merge(command, folder, capsys):
    assert "has the shape" in said(capsys, *COMMANDS[command], "-o", "x.safetensors")


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["", "dry run"])
@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("base", "already exists"),
        ("gone/fused", "'gone' does not exist"),
        ("NUL", "reserved by Windows"),
        ("fused.safetensors", "must not end in .safetensors"),
        ("broken.safetensors", "already exists"),
    ],
)
def test_a_fused_folder_is_checked_first(output, says, dry, folder, capsys):
    loras = ("a.safetensors", "b.safetensors")
    assert says in said(capsys, "fuse", "base", *loras, "-o", output, *dry)
    assert "has the shape" in said(capsys, "fuse", "base", *loras, "-o", "fused", *dry)


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("x.jpg", "must end in .png"),
        ("AUX.png", "reserved by Windows"),
        ("gone/x.png", "'gone' does not exist"),
        ("seen.png", "already exists"),
    ],
)
def test_a_picture_is_checked_before_the_loras_are_read(output, says, folder, capsys):
    (folder / "seen.png").write_bytes(b"")
    assert says in said(capsys, "inspect", "unread.safetensors", "--plot", output)


@pytest.mark.parametrize("command", ["measure", "distill"])
@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("x.bin", "must end in .safetensors"),
        ("gone/x.safetensors", "does not exist"),
        ("CON.safetensors", "res"),
    ],
)
def test_a_recording_is_checked_before_the_model_is_opened(output, says, command, folder, capsys):
    how = ("a.safetensors", "--model", "gone", "--recording", output)
    more = ("-o", "x.safetensors") if command == "distill" else ()
    assert says in said(capsys, command, *how, *more)
    assert not (folder / "x.safetensors").exists()


def test_the_demo_does_not_begin_where_its_folder_is_a_file(folder, capsys):
    assert "exists.safetensors is a file" in said(capsys, "demo", "-o", "exists.safetensors")
    assert "reserved by Windows" in said(capsys, "demo", "-o", "con")


def test_a_format_that_cannot_hold_the_layers_is_refused_first(folder, capsys):
    """Layers of two parts of a pipeline, for a PEFT folder."""
    how = ("a.safetensors", "b.safetensors", "text.safetensors", "--format", "peft", "-o", "adapter")
    assert "a PEFT folder is for one model" in said(capsys, "merge", *how)


def written(folder, capsys, *more):
    code = main(["resize", "a.safetensors", "--rank", "1", "--overwrite", *more])
    return code, capsys.readouterr().err


def test_a_link_is_kept_and_what_it_leads_to_is_replaced(folder, capsys):
    (folder / "store").mkdir()
    lora(folder / "store", "real.safetensors", 4)
    (folder / "link.safetensors").symlink_to("store/real.safetensors")
    assert written(folder, capsys, "-o", "link.safetensors")[0] == 0
    assert str((folder / "link.safetensors").readlink()) == "store/real.safetensors"
    assert sorted(path.name for path in (folder / "store").iterdir()) == ["real.safetensors"]
    assert main(["resize", "link.safetensors", "--rank", "1", "-o", "again.safetensors"]) == 0
    assert b"8" in (folder / "store" / "real.safetensors").read_bytes()


def test_what_is_no_file_of_ours_is_not_replaced(folder, capsys):
    """Pipes, devices, folders, read-only files, and links to them."""
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "folder.safetensors").mkdir()
    (folder / "device.safetensors").symlink_to("/dev/null")
    lora(folder, "locked.safetensors", 4)
    (folder / "locked.safetensors").chmod(0o444)
    (folder / "to_locked.safetensors").symlink_to("locked.safetensors")
    for name, says in (
        ("pipe", "a device or a pipe"),
        ("folder", "is a folder"),
        ("device", "a device or a pipe"),
        ("locked", "is read-only"),
        ("to_locked", "is read-only"),
        ("broken", "leads nowhere"),
    ):
        before = sorted(folder.iterdir())
        code, error = written(folder, capsys, "-o", f"{name}.safetensors")
        assert code == 1 and says in error, (name, error)
        assert sorted(folder.iterdir()) == before


def test_what_cannot_be_seen_is_written_out(folder, capsys):
    """In names of files and of tensors: letters of no width, and marks that turn the direction of reading."""
    name = "in\u200bk\u202e.safetensors"
    lora(folder, name, 8)
    for args in (
        ("merge", name, "b.safetensors", "-o", "x.safetensors"),
        ("merge", "gone\u2066\u200d", "-o", "x.safetensors"),
        ("merge", name, "--densit\u200by", "1", "-o", "x.safetensors"),
        ("merge", name, "--dry-run"),
        ("inspect", name),
    ):
        try:
            main(list(args))
        except SystemExit as stop:
            assert stop.code == 2
        out, error = capsys.readouterr()
        assert "\\u200" in out + error, args
        assert not any(ord(c) in (0x200B, 0x200D, 0x202E, 0x2066) for c in out + error), args
