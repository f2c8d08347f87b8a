"""Processes of their own for what would end, fill or limit the tests' process, and file systems to break."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# the peak of memory while each file is loaded, and what was said; more than 1 GB of addresses is not given
MEASURE = """
import re, resource, sys, torch, merge_ops
from pathlib import Path
status = lambda name: int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + (1 << 30),) * 2)
for path in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmHWM")
    try:
        said = len(merge_ops.load(path).layers)
    except merge_ops.MergeError as error:
        said = error
    print(status("VmHWM") - before, said)
"""


@pytest.fixture(scope="session")
def run_python():
    """Run a script, or a file, in a fresh Python with the repository on its path; returns the process."""

    def run(script, *args, timeout=600):
        command = [sys.executable, *(["-c", script] if isinstance(script, str) else [str(script)])]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, *map(str, args)], env=env, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of a size, in kB; a second call with ``read_only`` makes it so."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("no file system may be mounted here: this needs root on Linux")
        return place

    try:
        yield mount
    finally:
        subprocess.run(["umount", str(place)], capture_output=True, check=False)


@pytest.fixture
def peaks_of(run_python):
    """``(bytes, what was said)`` of loading each file in a process with little memory."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("memory is measured through /proc, which this system does not have")

    def measure(*paths):
        done = run_python(MEASURE, *paths)
        assert done.returncode == 0, done.stderr[-2000:]
        lines = [line.partition(" ") for line in done.stdout.splitlines()]
        return [(int(peak), said) for peak, _, said in lines]

    return measure
