"""Processes of their own for what would end, fill or limit the tests' process, and file systems to break."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def run_python():
    """Run a script, or a file, in a fresh Python with the repository on its path; returns the process."""

    def run(script, *args, timeout=300):
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
