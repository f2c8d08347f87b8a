"""A real ComfyUI with this pack in it: found, given tiny models, and started once for all tests."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.nodes import cache
from tests.nodes.editor import CHROMIUM, FLAGS, Editor
from tests.nodes.server import running

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SITE = "http://pack.test/"
LIMIT = 3600  # seconds for a script in ComfyUI's interpreter: a machine under load must not fail a test


@pytest.fixture(scope="session")
def run_script(comfyui_python, comfyui_env):
    """Run a script of this folder with ComfyUI's interpreter and return what it printed."""
    root, python = comfyui_python

    def run(script, *args):
        command = [str(python), str(HERE / script), *map(str, args)]
        done = subprocess.run(
            command, cwd=root, env=comfyui_env, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def tiny_models(comfyui_python, run_script):
    """A folder with tiny models and LoRAs, kept for these scripts and this version of ComfyUI."""
    scripts = [HERE / name for name in ("make_models.py", "make_loras.py", "comfy_inside.py")]
    sources = [path.read_bytes() for path in (*scripts, comfyui_python[0] / "comfyui_version.py")]

    def make(folder):
        run_script("make_models.py", folder / "models")
        run_script("make_loras.py", ROOT, folder)

    return cache.keep("models", sources, make) / "models"


@pytest.fixture(scope="session")
def language_models():
    """A folder with tiny language models and adapters by stock PEFT; None without transformers and PEFT."""
    if not (find_spec("transformers") and find_spec("peft")):
        return None
    from tests.nodes.make_language_models import make

    versions = [importlib.metadata.version(name).encode() for name in ("transformers", "peft", "torch")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about tied embeddings
        sources = [(HERE / "make_language_models.py").read_bytes(), *versions]
        return cache.keep("language", sources, lambda folder: make(folder / "models"))


@pytest.fixture(scope="session")
def base(tiny_models, language_models, tmp_path_factory):
    """A base folder for ComfyUI: tiny models, and this pack under a name of its own."""
    folder = tmp_path_factory.mktemp("comfyui")
    for name in ("models/loras", "custom_nodes", "input", "output", "temp", "user"):
        (folder / name).mkdir(parents=True)
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "demo", "demo-output", "benchmarks")
    shutil.copytree(ROOT, folder / "custom_nodes" / "any_folder-name", ignore=ignored)
    for name in ("tiny_language_model.py", "demo_digits.py", "pack_loaders.py", "tiny_prompt.py"):
        shutil.copy(HERE / name, folder / "custom_nodes")
    cache.give(tiny_models, folder / "models")
    if language_models:
        cache.give(language_models, folder)
    return folder


@pytest.fixture(scope="session")
def language(base, language_models):
    """The base folder has language models with adapters."""
    if language_models is None:
        pytest.skip("language models are made by transformers and PEFT, which are not installed")


@pytest.fixture(scope="session")
def inside(base, run_script):
    """What each check inside ComfyUI found wrong, by the file and the name of the check."""
    checks = {}
    for line in run_script("inside.py", base / "custom_nodes" / "any_folder-name", base).splitlines():
        if line.startswith('{"check"'):
            result = json.loads(line)
            checks.setdefault(result["file"], {})[result["check"]] = result["wrong"]
    return checks


@pytest.fixture(scope="session")
def server(base, comfyui_python, comfyui_env):
    """ComfyUI's real server on the CPU."""
    with running(*comfyui_python, {**comfyui_env, "DEMO_PYTHON": sys.executable}, base) as server:
        yield server


@pytest.fixture(scope="session")
def browser():
    """Chromium for all tests: Playwright can be started only once at a time."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium; install it or name it in CHROMIUM")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def scripts(browser):
    """An empty page that can import the pack's scripts; no ComfyUI."""

    def serve(route):
        path = ROOT / "web" / route.request.url.removeprefix(SITE)
        if path.is_file():
            kind = "text/css" if path.suffix == ".css" else "text/javascript"
            route.fulfill(path=path, content_type=kind)
        else:
            route.fulfill(body="<!doctype html>", content_type="text/html")

    page = browser.new_page()
    page.route("**/*", serve)
    page.goto(SITE)
    yield page
    page.close()


@pytest.fixture(scope="session")
def editor_page(browser, server):
    """The graph editor in a page that all tests share: loading it takes longer than most tests."""
    return Editor(browser, server.url, {"Comfy.VueNodes.Enabled": False})


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "nodes2"])
def editor(request, editor_page):
    """The page, empty, with the classic canvas and with Nodes 2.0."""
    editor_page.setting("Comfy.VueNodes.Enabled", request.param)
    return editor_page


@pytest.fixture(autouse=True)
def quiet(request):
    """A test of the editor leaves no error of ours in its console, and nothing open that Escape closes."""
    if "editor" not in request.fixturenames:
        yield
        return
    editor = request.getfixturevalue("editor")
    editor.problems.clear()
    yield
    editor.page.keyboard.press("Escape")
    assert not editor.ours()
