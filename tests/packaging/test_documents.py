"""Documents of the repository that no other test reads: links, versions, workflows, the walk-through."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toml
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import merge_ops
from merge_ops.methods.registry import LAWS
from tests.packaging.home import PLACES, address, move, pages

ROOT = Path(__file__).parents[2]
PROJECT = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Pages and pictures exist, and so does the heading that a link names."""
    for link, anchor in re.findall(
        r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")
    ):
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_whole(page):
    """Every run of table lines begins with a heading, so no empty line cuts a table in two."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, rule, *rows = table.splitlines()
        assert re.fullmatch(r"[|:\s-]+", rule), head
        assert {line.replace("\\|", "").count("|") for line in rows} == {head.count("|")}, head


def test_every_page_is_in_the_index():
    """``docs/README.md`` names each page once."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\((\w[\w-]*\.md)\)", index)
    assert sorted(linked) == sorted(
        page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"
    )


def test_one_version():
    """The citation, the newest entry of the changelog and the library agree."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(
        r"^## \[(\d[\d.]*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert citation["version"] == newest[1] == merge_ops.__version__
    assert citation["date-released"] == newest[2]


def test_one_address(tmp_path):
    """The repository's address stands in [project.urls]; one command changes it everywhere, and back."""
    home, files = address(), pages()
    name = home.rpartition("/")[2]
    for file in files:
        for found in re.findall(rf"https://[\w.]+/[\w-]+/{name}\b", file.read_text(encoding="utf-8")):
            assert found == home, file
    elsewhere = subprocess.run(
        ["git", "grep", "-lF", home, "--", *(f":!{place}" for place in PLACES)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not elsewhere.stdout
    for file in files:
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    copies = [tmp_path / file.relative_to(ROOT) for file in files]
    changed = move("https://github.com/someone/another-name/", copies, tmp_path)
    assert {"pyproject.toml", "CITATION.cff", "CHANGELOG.md"} <= {file.name for file in changed}
    assert not any(home in copy.read_text(encoding="utf-8") for copy in copies)
    assert move(home, copies, tmp_path) == changed
    assert all((tmp_path / file.relative_to(ROOT)).read_bytes() == file.read_bytes() for file in files)


def test_pictures_of_the_registry():
    """Icon and banner lie where [tool.comfy] says, in the sizes that the registry asks for."""
    for entry in ("Icon", "Banner"):
        url = PROJECT["tool"]["comfy"][entry]
        assert url.startswith(f"{address()}/raw/main/")
        with Image.open(ROOT / url.partition("/main/")[2]) as picture:
            width, height = picture.size
        assert width == height <= 400 if entry == "Icon" else width * 9 == height * 21


def test_lint_settings_name_what_exists():
    """Each pattern of ruff's per-file-ignores matches a file."""
    for pattern in PROJECT["tool"]["ruff"]["lint"]["per-file-ignores"]:
        assert any(ROOT.glob(pattern)), pattern


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda file: file.name)
def test_workflows_and_templates_can_be_read(file):
    """Valid YAML; the ``make`` targets and test folders that a workflow names exist."""
    assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)
    text, makefile = file.read_text(encoding="utf-8"), (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"run: make ([\w-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for folder in re.findall(r"\btests/\w+", text):
        assert (ROOT / folder).is_dir(), folder


@pytest.mark.parametrize("file", sorted((ROOT / ".github/workflows").iterdir()), ids=lambda file: file.name)
def test_actions_are_pinned_by_major_version(file):
    """Each action names its major version; PyPI keeps its own on a branch called ``release``."""
    used = re.findall(r"uses: (\S+)", file.read_text(encoding="utf-8"))
    assert used
    for action in used:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@(release/)?v\d+", action), action


def test_every_python_that_is_promised_is_tested():
    """Classifiers, the workflow's matrix and the oldest version agree."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))["jobs"]
    tested = jobs["linux"]["strategy"]["matrix"]["python-version"]
    promised = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["project"]["classifiers"]))
    assert tested == promised and PROJECT["project"]["requires-python"] == f">={tested[0]}"


def test_extras_of_the_install_page():
    """Each extra of the table is one of the project's."""
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    named = set(re.findall(r"lora-alloy\[([\w-]+)\]", page))
    assert named and named <= PROJECT["project"]["optional-dependencies"].keys()


@pytest.mark.slow
def test_the_walk_through(tmp_path):
    """The method of CONTRIBUTING.md: its file alone makes it a command, and the laws hold for it."""
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    name = re.search(r"Create `merge_ops/methods/(\w+)\.py`", guide)[1]
    code = re.search(r"```python\n(.*?)```", guide, re.DOTALL)[1]
    ignored = shutil.ignore_patterns("assets", "__pycache__")
    shutil.copytree(ROOT / "merge_ops", tmp_path / "merge_ops", ignore=ignored)
    (tmp_path / "tests" / "methods").mkdir(parents=True)
    tests = ("conftest.py", "laws.py", "methods/test_laws.py")
    for file in ("pyproject.toml", "README.md", *(f"tests/{test}" for test in tests)):
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "merge_ops" / "methods" / f"{name}.py").write_text(code, encoding="utf-8")
    for seed, file in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            "unet.mid.lora_A.weight": torch.randn(2, 8, generator=generator),
            "unet.mid.lora_B.weight": torch.randn(8, 2, generator=generator),
        }
        save_file(tensors, tmp_path / f"{file}.safetensors")

    def run(*command):
        command = [sys.executable, "-m", *command]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        return done.stdout

    assert name in run("merge_ops", "methods")
    commands = re.findall(r"^lora-alloy (merge .*)$", guide, re.MULTILINE)
    assert commands
    for command in commands:
        run("merge_ops", *command.split())
    laws = run("pytest", "-q", "tests/methods/test_laws.py", "-k", name)
    assert int(re.search(r"(\d+) passed", laws)[1]) >= len(LAWS)


def test_the_walks_name_what_exists():
    """Each step of the walks in docs/development.md is a file, and each function is defined in it."""
    page = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\| \d+ \| (.*?) \|", page, re.MULTILINE)
    assert len(steps) == 25
    for step in steps:
        folder = ROOT
        for place in re.findall(r"`([^`]+)`", step):
            name, _, function = place.partition(":")
            path = ROOT / name if "/" in name else folder / name
            path = path if path.exists() else ROOT / "merge_ops" / name
            assert path.exists(), place
            folder = path.parent if path.is_file() else path
            if function:
                source = path.read_text(encoding="utf-8")
                for part in function.split("."):
                    assert re.search(rf"(def|class) {part}\b", source), place
