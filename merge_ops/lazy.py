"""Packages whose public names are imported when they are first used: the package itself costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def import_when_used(package: str, homes: Mapping[str, Iterable[str]]) -> None:
    """Let a package import its public names, and its submodules, when they are first asked for.

    A name that is also that of the submodule it is in, such as ``saving.save``, stays that of the function,
    as it does after an import in ``__init__``.

    Args:
        package: ``__name__`` of the package, which calls this at the end of its ``__init__``.
        homes: the names that each submodule has, by the submodule. They stand below ``if TYPE_CHECKING`` as
            well, for type checkers and editors.
    """
    module = sys.modules[package]
    module.__dict__["_home_of"] = {name: home for home, names in homes.items() for name in names}
    module.__class__ = _LazyPackage


class _LazyPackage(ModuleType):
    _home_of: dict[str, str]  # name to the submodule that it is in

    def __getattr__(self, name: str) -> Any:
        home = None if name.startswith("_") else self._home_of.get(name, name)
        if home is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        full = f"{self.__name__}.{home}"
        try:
            module = import_module(full)
        except ModuleNotFoundError as error:
            if error.name != full:
                raise
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None
        value = getattr(module, name) if name in self._home_of else module
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and self._home_of.get(name) == name:
            value = getattr(value, name)  # the import system gives a package each submodule by its name
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._home_of})
