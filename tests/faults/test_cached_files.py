"""LoRA files in ComfyUI: confined to its folders, kept up to some bytes, read again when changed."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def said(comfyui_python, comfyui_env, tmp_path_factory):
    root, python = comfyui_python
    script, folder = Path(__file__).with_name("cached_files.py"), tmp_path_factory.mktemp("models")
    command = [str(python), str(script), str(root), str(ROOT), str(folder)]
    done = subprocess.run(
        command, cwd=root, env=comfyui_env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_files_used_last_are_kept(said):
    """By bytes; the one in use stays, however large."""
    assert said["kept"] == ["0", "2", "3"]
    assert said["the same object"]
    assert said["one larger than the limit"] == ["4"]


def test_changed_files_are_read_again(said):
    """Also when only the configuration of a PEFT folder changed."""
    assert said["read again"] == 9.0
    assert said["scales"] == [1.0, 2.0]


def test_names_are_confined(said):
    """``..``, absolute, drive letters, backslashes, NUL, reserved names: none leaves the loras folders."""
    assert said["outside"] == []
