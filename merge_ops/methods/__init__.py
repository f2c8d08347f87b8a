"""One merge method per file; every module in this folder is imported, so a new file registers itself.

``METHODS`` lists them by the age of their papers, oldest first: ``linear`` is what menus start with.
"""

import importlib
import pkgutil

from .registry import METHODS

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f".{_module.name}", __name__)
_by_age = sorted(METHODS.values(), key=lambda method: (method.name != "linear", method.paper, method.name))
METHODS.clear()
METHODS.update({method.name: method for method in _by_age})
