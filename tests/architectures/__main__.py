"""Write ``modules.json`` and ``docs/architectures.md`` again, from the real models and the tests' own counts.

python -m tests.architectures
"""

import json
import os
import subprocess
from pathlib import Path

from tests.architectures.configs import COMFYUI
from tests.architectures.diffusers_models import modules
from tests.architectures.keys import MODULES, packed
from tests.conftest import ROOT, find_comfyui


def comfyui_modules():
    root = find_comfyui()
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "comfyui")}
    command = [str(root / ".venv" / "bin" / "python"), str(Path(__file__).with_name("comfyui_models.py"))]
    done = subprocess.run(command, cwd=root, env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


theirs = comfyui_modules()
found = {name: {"comfyui": packed(theirs[name]), "diffusers": packed(modules(name))} for name in COMFYUI}
MODULES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
