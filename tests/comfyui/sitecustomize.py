"""Put on PYTHONPATH of a ComfyUI process: empty torchvision and torchaudio, if the real ones are missing.

ComfyUI imports both at its start, for audio and video models that these tests do not use.
"""

import importlib.abc
import importlib.machinery
import sys
import types


class _Empty(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        wanted = name.split(".")[0] in ("torchvision", "torchaudio")
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec):
        return _Empty(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(_Absent())  # last, so that the real packages win
