"""The wheel: built, installed apart from this checkout, and run."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import merge_ops

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that would go to PyPI."""
    folder = tmp_path_factory.mktemp("wheel")
    # with the pinned build tools of requirements-dev.txt, and so without the network
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = folder.glob("*.whl")
    return built


def test_what_is_in_it(wheel):
    """The library with its types and the demo's assets; no tests, and no scripts that trained the demo."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if not name.startswith("lora_alloy-")} == {"merge_ops"}
    assert "merge_ops/py.typed" in names
    assert any(name.startswith("merge_ops/demo/assets/") for name in names)
    assert not [name for name in names if "/training/" in name or "test" in name]


def test_links_of_the_long_description(wheel):
    """PyPI shows the README away from the repository: links and pictures are absolute, of one address."""
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    text = archive.read(metadata).decode()
    home = re.search(r"^Project-URL: Repository, (\S+)$", text, re.MULTILINE)[1]
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text.partition("\n\n")[2])
    assert len(links) > 10
    pictures = [link for link in links if link.endswith(".png")]
    assert pictures and all(link.startswith(f"{home}/raw/main/docs/") for link in pictures)
    others = [link for link in links if "arxiv.org" not in link and link not in pictures]
    assert others and all(link.startswith(f"{home}/blob/main/") for link in others)
    for link in (*pictures, *others):
        assert (ROOT / link.partition("/main/")[2]).exists(), link


def test_it_runs_where_it_is_installed(wheel, tmp_path):
    """From a folder of its own, before this checkout on the path; as a module and as a command."""
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run(
        [*command, "--target", str(site), str(wheel)], check=True, capture_output=True, timeout=600
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*command):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    where = run(sys.executable, "-c", "import merge_ops; print(merge_ops.__file__)")
    assert Path(where.strip()).is_relative_to(site)
    assert "linear" in run(sys.executable, "-m", "merge_ops", "methods")
    (script,) = (site / "bin" if os.name == "posix" else site / "Scripts").glob("lora-alloy*")
    assert merge_ops.__version__ in run(str(script), "--version")
