"""Importing torch and numpy only when a command computes something.

Modules of methods have ``import torch`` at their top and use it inside functions. The command line needs what
these modules declare for every ``--help``, and torch takes two seconds to import.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


@contextmanager
def deferred(*names: str) -> Iterator[None]:
    """Give a stand-in to the modules that are imported inside this block and import one of ``names``.

    A stand-in imports its module when one of its attributes is first used. After the block none is left in
    ``sys.modules``, so that later imports are ordinary ones. Modules that are imported already stay.
    """
    stand_ins = {name: _StandIn(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for stand_in in stand_ins.values():
            stand_in.step_aside()


class _StandIn(ModuleType):
    def step_aside(self) -> None:
        """Leave ``sys.modules``, so that the module itself can be imported."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]

    def __getattr__(self, name: str) -> Any:
        self.step_aside()
        value = getattr(import_module(self.__name__), name)
        self.__dict__[name] = value
        return value
