"""Run by ComfyUI's interpreter: all checks, in one process with the real comfy modules.

    python inside.py PACK_FOLDER BASE_FOLDER [PART OF A CHECK'S NAME ...]

Prints one JSON line for each check: its name, its file, and what is wrong, if anything.
"""

import importlib
import json
import unittest
from pathlib import Path

from comfy_inside import BASE, CHECKS, WANTED

HERE = Path(__file__).parent
# they register themselves, once ComfyUI can be imported; language models are there only where they were made
for name in sorted(path.stem for path in HERE.glob("checks_*.py")):
    if name != "checks_language" or (BASE / "language").is_dir():
        try:
            importlib.import_module(name)
        except ImportError as error:  # what moved in this version of ComfyUI must not hide all other checks
            line = {"check": "the checks can be imported", "file": name, "wrong": str(error)}
            print(json.dumps(line), flush=True)  # noqa: T201
for function in CHECKS:
    label = function.__name__ + (f"[{function.__defaults__[0]}]" if function.__defaults__ else "")
    if any(part in label for part in (WANTED or [""])):
        result = unittest.TestResult()
        unittest.FunctionTestCase(function).run(result)
        wrong = "".join(text for _, text in result.errors + result.failures)
        line = {"check": label, "file": Path(function.__code__.co_filename).stem, "wrong": wrong}
        print(json.dumps(line), flush=True)  # noqa: T201
