"""The pack's archive, made as the Comfy registry makes it, loads in a real ComfyUI."""

import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pathspec
import pytest

ROOT = Path(__file__).parents[2]
# imports the pack by its path as ComfyUI does, and prints what its entry point gives
PROGRAM = """
import asyncio, importlib.util, json, sys
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
pack = sys.stdin.read().strip()
place = importlib.util.spec_from_file_location
spec = place("the_pack", pack + "/__init__.py", submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules["the_pack"] = module
spec.loader.exec_module(module)
async def nodes():
    extension = await module.comfy_entrypoint()
    return [node.define_schema().node_id for node in await extension.get_node_list()]
print(json.dumps(asyncio.run(nodes())))
"""


@pytest.fixture(scope="module")
def files():
    """The tracked files that the registry's archive holds: those that ``.comfyignore`` does not match."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ignored = pathspec.GitIgnoreSpec.from_lines(
        (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    )
    return [name for name in listed.splitlines() if not ignored.match_file(name)]


def test_what_is_in_it(files):
    """Nodes, library, pages and pictures of the README; no tests, benchmarks or training scripts."""
    assert {"__init__.py", "pyproject.toml", "README.md", "LICENSE", "docs/demo.png"} <= set(files)
    assert any(name.startswith("web/docs/") for name in files)
    assert any(name.startswith("example_workflows/") for name in files)
    dropped = ("tests/", "benchmarks/", "fuzz/", ".github/", "merge_ops/demo/training/")
    assert not [name for name in files if name.startswith(dropped)]
    assert sum((ROOT / name).stat().st_size for name in files) < 16 << 20


def test_links_of_its_pages(files):
    """Whatever the README links to, and the pages that it leads to, is in the archive too."""
    todo, seen = ["README.md"], set()
    while todo:
        page = todo.pop()
        seen.add(page)
        assert page in files
        if page.endswith(".md"):
            links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
            targets = {Path(os.path.normpath(Path(page).parent / link)).as_posix() for link in links}
            todo += targets - seen
    assert {"docs/demo.png", "docs/README.md", "CONTRIBUTING.md", "CITATION.cff"} <= seen


def test_it_loads_in_comfyui(files, tmp_path, comfyui_python, comfyui_env):
    """Unpacked into a folder of another name, with nothing of this checkout beside it."""
    with tarfile.open(tmp_path / "pack.tar", "w") as archive:
        for name in files:
            archive.add(ROOT / name, arcname=f"some-folder/{name}")
    with tarfile.open(tmp_path / "pack.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    root, python = comfyui_python
    done = subprocess.run(
        [str(python), "-c", PROGRAM],
        input=str(tmp_path / "some-folder"),
        cwd=root, env=comfyui_env, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 15 and "LoraAlloyLoader" in found
