"""Run by ComfyUI's interpreter: all checks, in one process with the real comfy modules.

    python inside.py PACK_FOLDER BASE_FOLDER [PART OF A CHECK'S NAME ...]

Prints one JSON line a check: its name, and what is wrong, if anything.
"""

import importlib
import json
import unittest

from comfy_inside import BASE, CHECKS, WANTED

MODULES = (
    "checks_weights",
    "checks_nodes",
    "checks_bad",
    "checks_patches",
    "checks_recipe",
    "checks_kinds",
    "checks_based",
    "checks_architectures",
    "checks_blocks",
    "checks_sweep",
)

if (BASE / "language").is_dir():
    MODULES += ("checks_language",)
for name in MODULES:  # they register themselves, once ComfyUI can be imported
    importlib.import_module(name)
for function in CHECKS:
    label = function.__name__ + (f"[{function.__defaults__[0]}]" if function.__defaults__ else "")
    if any(part in label for part in (WANTED or [""])):
        result = unittest.TestResult()
        unittest.FunctionTestCase(function).run(result)
        wrong = "".join(text for _, text in result.errors + result.failures)
        print(json.dumps({"check": label, "wrong": wrong}), flush=True)  # noqa: T201
