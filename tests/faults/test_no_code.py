"""No code runs from a file, nothing is asked of the network, and metadata is shown escaped and capped."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import merge_ops

WATCHED = """
import os, sys, merge_ops, torch
from merge_ops import cli
seen = []
own = os.path.dirname(torch.__file__)  # torch's library, which is loaded already, is asked for a function
watched = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "pickle.", "urllib.",
           "ctypes.dlopen")
def watch(event, args):
    if event.startswith(watched) and not (event == "ctypes.dlopen" and str(args[0]).startswith(own + os.sep)):
        seen.append(event)
sys.addaudithook(watch)
folder = sys.argv[1]
for path in sys.argv[2:]:
    try:
        lora = merge_ops.load(path)
    except merge_ops.MergeError as error:
        continue
    for method in merge_ops.METHODS:
        merged = merge_ops.merge([lora, lora], method=method, moments={})
        merge_ops.save(merged, f"{folder}/{method}.safetensors", overwrite=True)
    cli.main(["inspect", path])
print("seen:", seen)
"""


def lora(path, metadata=None):
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    pair = {f"{stem}.lora_up.weight": torch.ones(6, 2), f"{stem}.lora_down.weight": torch.ones(2, 5)}
    save_file(pair, path, metadata)
    return path


def test_no_network_no_process_no_pickle(tmp_path, run_python):
    """Python's own audit of what reading, merging, saving and inspecting do: nothing of the kind."""
    commands = {
        "ss_training_comment": "__import__('os').system('true')",
        "modelspec.title": "http://localhost/",
    }
    paths = [lora(tmp_path / "a.safetensors", commands), tmp_path / "b.pt", tmp_path / "c.safetensors"]
    torch.save({"a": torch.ones(2)}, paths[1])
    paths[2].write_bytes(b"\x80\x02cos\nsystem\n(S'true'\ntR.")
    done = run_python(WATCHED, tmp_path, *paths)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "seen: []"


def test_metadata_is_shown_escaped_and_capped(tmp_path, run_python):
    """No control character of the file reaches the terminal, and no value fills the screen."""
    nasty = {"a\x1b[31m": "\x1b]0;title\x07 <script>alert(1)</script>\n\u202e", "b": "x" * 1_000_000}
    nasty |= {f"key{i}": "" for i in range(1000)}
    path = lora(tmp_path / "x.safetensors", nasty)
    done = run_python("from merge_ops.cli import main; import sys; main(['inspect', sys.argv[1]])", path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(character == "\n" or character.isprintable() for character in done.stdout)
    assert len(done.stdout) < 20_000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "only 0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        (b"<html>", "web page"),
        (b"PK\x03\x04", "pickle"),
        (b"\xff" * 8 + b"{}", "header needs"),
    ],
)
def test_the_command_line_says_the_same(content, says, tmp_path, capsys):
    """One sentence, exit code 1, no traceback."""
    from merge_ops.cli import main

    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert main(["inspect", str(path)]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert says in error
    assert "x.safetensors" in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_seeds_of_the_fuzzer(tmp_path):
    """Each is read without a finding, and the corpus is what its script writes, below 100 kB."""
    fuzz = os.path.join(os.path.dirname(__file__), "..", "..", "fuzz")  # noqa: PTH118, PTH120
    copy = shutil.copytree(fuzz, tmp_path / "fuzz", ignore=shutil.ignore_patterns("grown*", "findings"))
    before = {path.name: path.read_bytes() for path in (copy / "corpus").iterdir()}
    shutil.rmtree(copy / "corpus")
    root = os.path.dirname(merge_ops.__path__[0])  # noqa: PTH120
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    for command in (["corpus.py"], ["run.py", "--loop", "--minutes", "0.05"]):
        done = subprocess.run(
            [sys.executable, str(copy / command[0]), *command[1:]], env=env, capture_output=True, text=True,
            timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith(" 0 findings\n")
    assert {path.name: path.read_bytes() for path in (copy / "corpus").iterdir()} == before
    assert sum(map(len, before.values())) < 100_000
