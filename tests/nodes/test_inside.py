"""The checks that run inside the real ComfyUI, all in one process: patched weights, refusals, every kind."""

from pathlib import Path

import pytest

FILES = sorted(path.stem for path in Path(__file__).parent.glob("checks_*.py"))


@pytest.mark.parametrize("file", FILES)
def test_inside_comfyui(request, inside, subtests, file):
    """Each check of a file is a subtest, and each that registered itself did run."""
    if file == "checks_language":
        request.getfixturevalue("language")
    checks = inside[file]
    assert checks
    for label, wrong in checks.items():
        with subtests.test(label):
            assert not wrong, wrong
