"""Write ``modules.json`` and the table of ``docs/architectures.md`` again, from the real models.

python -m tests.architectures
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.architectures.configs import COMFYUI
from tests.architectures.diffusers_models import modules
from tests.architectures.keys import MODULES, packed
from tests.architectures.table import rows, write
from tests.architectures.through_diffusers import all_counts
from tests.conftest import ROOT, find_comfyui

INSIDE = ROOT / "tests" / "nodes" / "inside.py"


def in_comfyui(*command: str) -> str:
    """What a script prints in ComfyUI's interpreter."""
    root = find_comfyui()
    if root is None:
        sys.exit("no ComfyUI found: set COMFYUI_DIR")
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "comfyui")}
    python = str(root / ".venv" / "bin" / "python")
    done = subprocess.run(
        [python, *command], cwd=root, env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def main() -> None:
    """Modules first: the counts are made from them."""
    theirs = json.loads(in_comfyui(str(Path(__file__).with_name("comfyui_models.py"))).splitlines()[-1])
    found = {name: {"comfyui": packed(theirs[name]), "diffusers": packed(modules(name))} for name in COMFYUI}
    MODULES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as base:
        in_comfyui(str(INSIDE), str(ROOT), base, "spellings_meet")
        counted = Path(base, "architectures")
        inside = {name: json.loads((counted / f"{name}.json").read_text()) for name in COMFYUI}
    write(rows(inside, all_counts()))


main()
