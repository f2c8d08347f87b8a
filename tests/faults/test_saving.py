"""Saving through kills, full disks, read-only folders and competitors: the old file, none, or all of it."""

import json
import re
from pathlib import Path

import pytest

import merge_ops
from merge_ops import MergeError

SAVER = Path(__file__).with_name("saver.py")
FORMS = ["kohya", "peft"]
TEMPORARY = re.compile(r"\.x\.[0-9a-f]{8}(\.old)?\.part")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def target_in(folder, form):
    return folder / ("x" if form == "peft" else "x.safetensors")


def content(target):
    files = sorted(target.iterdir()) if target.is_dir() else [target]
    return [file.read_bytes() for file in files]


@pytest.fixture
def merged(make_lora):
    shapes = {"unet.conv_in": (200, 100), "unet.conv_out": (100, 200)}
    return merge_ops.merge([make_lora(shapes=shapes, rank=8)])


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_kill_at_any_moment(form, tmp_path, run_python):
    """Forty times; what stays besides is called as a temporary is, and has nothing that ComfyUI lists."""
    folder = tmp_path / "out"
    folder.mkdir()
    done = run_python(SAVER, "kill", folder, form, 40)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert seen["wrong"] == []
    assert len(seen["states"]) == 40
    assert "half" not in seen["states"]
    assert {"a", "b"} <= set(seen["states"])
    assert all(TEMPORARY.fullmatch(name) for name in seen["left"]), seen["left"]
    if form == "kohya":
        assert "none" not in seen["states"]
        assert not list(folder.glob(".x.*/*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_four_processes_save_under_one_name(form, tmp_path, run_python):
    """Without overwrite one of them wins and the others are told; with it each save is whole."""
    folder = tmp_path / "out"
    folder.mkdir()
    done = run_python(SAVER, "compete", folder, form)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert sorted(said["False"]) == [0, 1, 1, 1]
    assert max(said["True"]) <= (0 if form == "kohya" else 10)
    assert said["half False"] == said["half True"] == []
    assert said["layers False"] == said["layers True"] == 12
    assert said["left"] == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [4, 8])
def test_a_full_disk(size, form, merged, small_disk):
    """The error says so, and the old file is as it was."""
    folder = small_disk(f"size={size}k")
    target = target_in(folder, form)
    with pytest.raises(
        MergeError, match=r"x\S* could not be written: .*No space left on device.*nothing was saved"
    ):
        merge_ops.save(merged, target, format=form)
    assert names(folder) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_that_fills_up_keeps_the_old_file(form, merged, small_disk):
    folder = small_disk("size=64k")
    target = target_in(folder, form)
    merge_ops.save(merged, target, format=form)
    before = content(target)
    (folder / "big").write_bytes(b"x" * 48 * 1024)
    with pytest.raises(MergeError, match="No space left on device"):
        merge_ops.save(merged, target, format=form, overwrite=True)
    assert content(target) == before
    assert names(folder) == sorted(["big", target.name])


LIMITED = """
import resource, signal, sys, torch, merge_ops
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
layers = {"unet.conv_in": merge_ops.LowRank(torch.ones(200, 8), torch.ones(8, 100))}
merged = merge_ops.merge([merge_ops.Lora("a", layers)])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    merge_ops.save(merged, sys.argv[1])
except merge_ops.MergeError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(tmp_path, run_python):
    """A quota, as hosting services have it; needs no root."""
    done = run_python(LIMITED, tmp_path / "x.safetensors")
    assert "x.safetensors could not be written" in done.stdout, done.stderr[-2000:]
    assert names(tmp_path) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_read_only_folder(form, merged, small_disk, tmp_path):
    folder = small_disk("size=64k")
    target = target_in(folder, form)
    merge_ops.save(merged, target, format=form)
    before = content(target)
    small_disk("remount,ro")
    for name, overwrite in ((target.name, True), (f"other{target.suffix}", False)):
        with pytest.raises(MergeError, match="nothing can be written to the folder 'disk'; choose another"):
            merge_ops.save(merged, folder / name, format=form, overwrite=overwrite)
    assert content(target) == before
    assert names(folder) == [target.name]


def test_what_lies_beside_the_adapter_stays_in_its_folder(merged, tmp_path):
    """The folder is exchanged as a whole, so that weights never lie beside an older configuration."""
    target = tmp_path / "x"
    merge_ops.save(merged, target, format="peft")
    (target / "README.md").write_text("kept")
    (target / "checkpoint-1").mkdir()
    (target / "checkpoint-1" / "state").write_text("kept too")
    merge_ops.save(merged, target, format="peft", overwrite=True)
    assert (target / "README.md").read_text() == "kept"
    assert (target / "checkpoint-1" / "state").read_text() == "kept too"
    assert names(tmp_path) == ["x"]


def test_a_link_to_a_folder_stays_a_link(merged, tmp_path):
    """And the folder that it leads to gets the adapter."""
    (tmp_path / "real").mkdir()
    (tmp_path / "x").symlink_to(tmp_path / "real", target_is_directory=True)
    merge_ops.save(merged, tmp_path / "x", format="peft", overwrite=True)
    assert (tmp_path / "x").is_symlink()
    assert names(tmp_path / "real") == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_long_name(merged, tmp_path):
    """As long as the file system allows: the temporary's name is not longer."""
    target = tmp_path / f"{'x' * 243}.safetensors"
    merge_ops.save(merged, target)
    assert names(tmp_path) == [target.name]
