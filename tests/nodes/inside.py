"""Run by ComfyUI's interpreter: all checks, in one process with the real comfy modules.

    python inside.py PACK_FOLDER BASE_FOLDER [PART OF A CHECK'S NAME ...]

Prints one JSON line a check: its name, and what is wrong, if anything.
"""

import importlib
import json
import traceback

from comfy_inside import CHECKS, WANTED

for name in (
    "checks_weights",
    "checks_nodes",
    "checks_patches",
    "checks_recipe",
    "checks_kinds",
):  # they register themselves, once ComfyUI can be imported
    importlib.import_module(name)
for function in CHECKS:
    label = function.__name__ + (f"[{function.__defaults__[0]}]" if function.__defaults__ else "")
    if not any(part in label for part in (WANTED or [""])):
        continue
    wrong = ""
    try:
        function()
    except Exception:  # whatever a check meets is the result: the test that reads the line fails with it
        wrong = traceback.format_exc()
    print(json.dumps({"check": label, "wrong": wrong}), flush=True)  # noqa: T201
