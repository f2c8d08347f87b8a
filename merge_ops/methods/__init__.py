"""One merge method a function; every module in this folder is imported, so a new file registers itself.

``linear`` comes first, since the first method is what menus start with.
"""

import importlib
import pkgutil

for _module in sorted(
    (m.name for m in pkgutil.iter_modules(__path__)), key=lambda name: (name != "linear", name)
):
    importlib.import_module(f".{_module}", __name__)
