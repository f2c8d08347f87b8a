"""What some tests need of the machine."""

import sys

import pytest
import torch

needs_mkl = pytest.mark.skipif(
    not torch.backends.mkl.is_available() or sys.platform != "linux",
    reason="only MKL, and on Linux, sets the number of threads for one thread",
)
