"""Two models on disk: a base, and one that was tuned from it."""

import pytest
from safetensors.torch import save_file

from tests.extracting.weights import SD1, random_weights, tuned_from


@pytest.fixture
def write(tmp_path):
    """Write tensors as a file in the test's folder, and return its path."""

    def write(name, tensors, metadata=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
        return path

    return write


@pytest.fixture
def sd1(write):
    """``(tuned, base)`` as files; every weight differs, matrices by a change of rank 4."""
    base = random_weights(SD1)
    return write("tuned.safetensors", tuned_from(base)), write("base.safetensors", base)
