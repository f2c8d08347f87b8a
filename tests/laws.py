"""The laws of merging that a method may declare it cannot keep; see ``merge_ops.methods.registry.LAWS``."""

import pytest

from merge_ops import METHODS


def skip_if_broken(name, *laws):
    """Skip, with the method's own reason, where it declares that it does not keep one of the laws."""
    for law in laws:
        if law in METHODS[name].breaks:
            pytest.skip(f"{name} does not keep the law {law!r}: {METHODS[name].breaks[law]}")
