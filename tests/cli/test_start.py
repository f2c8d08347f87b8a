"""What needs no tensor is answered without torch: help, the list of methods, and mistakes of usage."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "safetensors", "tqdm")
COMMANDS = "merge fuse extract distill measure inspect resize recipe methods demo".split()
# runs a command; the last line has the exit code, the seconds of processor time and what was imported
RUN = f"""
import sys
from merge_ops.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
import json, time
print()
print(json.dumps([code, time.process_time(), [name for name in {HEAVY} if name in sys.modules]]))
"""
OUT = ("-o", "x.safetensors")
HELP = [("--help",), ("--version",), ("merge", "--method", "ties", "--help"), ("recipe", "run", "--help")]
HELP += [(command, "--help") for command in COMMANDS]
HELP += [("methods",), ("methods", "--json"), ("methods", "--markdown")]
USAGE = [
    (),
    ("merg",),
    ("merge",),
    ("merge", "a", "--rnk", "3"),
    ("merge", "a", "--density", "0.5"),
    ("merge", "a", "--method", "tise"),
    ("merge", "a", "--method", "ties", "--density", "half"),
    ("merge", "a", "--combination-type", "svd_ties"),
    ("merge", "a", "--format", "koyha"),
    ("merge", "a", "--rank", "many"),
    ("merge", "a"),
    ("merge", "a", *OUT, "--per-layer"),
    ("resize", "a", *OUT),
    ("resize", "a", *OUT, "--dynamic_method", "sv_fro"),
    ("inspect", "a", "--view", "norms"),
    ("measure", "a", "--model", "m", "--scales", "1,x"),
    ("distill", "a", "--model", "m"),
    ("extract", "a", "b"),
    ("extract", "a", "b", *OUT, "--format", "diffusers"),
    ("fuse", "a", "b"),
    ("recipe", "run", "a"),
]
REFUSED = [  # exit code 1: what is given does not exist or is not allowed
    ("merge", "gone.safetensors:0.5", *OUT),
    ("merge", "ink-*.safetensors", *OUT),
    ("merge", "a", *OUT, "--energy", "3"),
    ("merge", "a", *OUT, "--method", "ties", "--density", "2"),
    ("merge", "a", "-o", "there.safetensors"),
    ("merge", "a", "-o", "gone/x.safetensors"),
    ("inspect", "gone.safetensors"),
    ("resize", "gone.safetensors", "--rank", "2", *OUT),
    ("fuse", "gone", "a", "-o", "x"),
    ("fuse", "gone", "a", "-o", "there.safetensors"),
    ("measure", "a", "--model", "m", "--compare", "tise"),
    ("extract", "gone", "gone", *OUT),
    ("extract", "gone", "gone", *OUT, "--energy", "2"),
    ("recipe", "show", "gone"),
    ("recipe", "run", "gone", *OUT),
    ("demo", "-o", "there.safetensors"),
]


def python(code, *args, cwd):
    """Run a program with the library at hand; its standard output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(*args, cwd):
    """Run a command: ``(exit code, seconds of processor time, heavy modules that it imported)``."""
    return json.loads(python(RUN, *args, cwd=cwd).splitlines()[-1])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "there.safetensors").write_bytes(b"kept")
    return tmp_path


@pytest.mark.parametrize("args", HELP, ids=" ".join)
def test_help_and_the_list_of_methods_import_nothing_heavy(args, folder):
    code, _, imported = run(*args, cwd=folder)
    assert (code, imported) == (0, [])


@pytest.mark.parametrize("args", USAGE, ids=" ".join)
def test_mistakes_of_usage_import_nothing_heavy(args, folder):
    code, _, imported = run(*args, cwd=folder)
    assert (code, imported) == (2, [])


@pytest.mark.parametrize("args", REFUSED, ids=" ".join)
def test_what_is_refused_before_reading_imports_nothing_heavy(args, folder):
    code, _, imported = run(*args, cwd=folder)
    assert (code, imported) == (1, [])


def test_help_takes_little_time(folder):
    """Processor time, beside that of Python itself; torch alone takes two seconds."""
    bare = float(python("import time; print(time.process_time())", cwd=folder))
    run("--help", cwd=folder)  # compiles what is not compiled yet
    for args in (("--help",), ("merge", "--help"), ("methods",), ("merge", "a", "--rnk", "3")):
        assert min(run(*args, cwd=folder)[1] for _ in range(3)) < bare + 0.25, args


def test_methods_read_without_torch_work_afterwards(folder):
    """The stand-ins that their modules got lead to torch and numpy themselves."""
    code = """
import sys
from merge_ops.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
assert "torch" not in sys.modules and "numpy" not in sys.modules
from merge_ops import METHODS
import torch.nn.functional
assert type(torch) is type(sys) and torch.nn is sys.modules["torch.nn"]
deltas, weights = torch.randn(2, 8, 8), torch.tensor([1.0, 0.5])
merged = METHODS["ties"].fn(deltas, weights, density=0.4)
import importlib, merge_ops.methods.ties as ties
again = importlib.reload(sys.modules["merge_ops.methods.sparsify"])
assert again.torch is torch
assert torch.equal(merged, ties.ties(deltas, weights, density=0.4))
print("same")
"""
    assert python(code, cwd=folder).splitlines()[-1] == "same"


def test_a_program_gets_no_stand_in(folder):
    """``import merge_ops`` imports nothing heavy, and what it needs later is imported as ever."""
    code = """
import sys
import merge_ops
assert not {"torch", "numpy"} & set(sys.modules)
import merge_ops.cli
assert not {"torch", "numpy"} & set(sys.modules)
merge_ops.METHODS["ties"]
from merge_ops.methods import sparsify
import torch, numpy
assert sparsify.torch is torch and sparsify.np is numpy
"""
    python(code, cwd=folder)


def test_an_import_of_torch_that_fails_says_so(folder):
    """As without the command line's stand-in: the error of torch itself, each time."""
    (folder / "torch.py").write_text("raise ImportError('libtorch is broken')")
    code = """
import sys
sys.path.insert(0, "")
from merge_ops.cli.deferred import deferred
with deferred("torch"):
    import torch
for _ in range(2):
    try:
        torch.zeros
    except ImportError as error:
        print(error, "torch" in sys.modules)
"""
    assert python(code, cwd=folder).splitlines() == ["libtorch is broken False"] * 2


def test_threads_share_what_a_stand_in_leads_to(folder):
    (folder / "slow.py").write_text("import time\ntime.sleep(0.2)\nvalue = object()\n")
    sys.path.insert(0, str(folder))
    from merge_ops.cli.deferred import deferred

    try:
        with deferred("slow"):
            import slow
        seen = []
        threads = [threading.Thread(target=lambda: seen.append(slow.value)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.path.remove(str(folder))
        found = sys.modules.pop("slow")
    assert len(seen) == 8 and set(seen) == {found.value}
