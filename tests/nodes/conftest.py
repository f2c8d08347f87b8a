"""A real ComfyUI with this pack in it: found, given tiny models, and started once for all tests."""

import hashlib
import io
import json
import os
import shlex
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import filelock
import pytest
from PIL import Image

from tests.nodes.editor import CHROMIUM, FLAGS, Editor

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def tiny_models(comfyui_python, comfyui_env, pytestconfig):
    """A folder of tiny models, made once for this version of the script and of ComfyUI, and kept."""
    root, python = comfyui_python
    script = HERE / "make_models.py"
    version = (root / "comfyui_version.py").read_bytes()
    key = hashlib.sha256(script.read_bytes() + version).hexdigest()[:16]
    folder = pytestconfig.cache.mkdir("lora_alloy") / f"models-{key}"
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            for old in folder.parent.glob("models-*"):
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=old.suffix == ".lock")
            made = folder.with_suffix(".part")
            command = [str(python), str(script), str(made)]
            subprocess.run(command, cwd=root, env=comfyui_env, check=True, capture_output=True, timeout=600)
            made.rename(folder)
    return folder


@pytest.fixture(scope="session")
def base(tiny_models, tmp_path_factory):
    """A base folder for ComfyUI: tiny models, and this pack under a name of its own."""
    folder = tmp_path_factory.mktemp("comfyui")
    for name in ("models/loras", "custom_nodes", "input", "output", "temp", "user"):
        (folder / name).mkdir(parents=True)
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "demo", "demo-output", "benchmarks")
    shutil.copytree(ROOT, folder / "custom_nodes" / "any_folder-name", ignore=ignored)
    shutil.copy(HERE / "tiny_language_model.py", folder / "custom_nodes")
    # links: half a gigabyte that nobody writes to
    shutil.copytree(tiny_models, folder / "models", copy_function=link, dirs_exist_ok=True)
    return folder


def link(source, target):
    """Give a file a second name, where the file system can; else copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture(scope="session")
def language(base):
    """Tiny language models with adapters in the base folder."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    from tests.nodes.make_language_models import make

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about tied embeddings
        make(base / "models")


@pytest.fixture(scope="session")
def run_checks(base, comfyui_python, comfyui_env):
    """Run the checks of ``inside.py``, or those with certain parts in their names: file to check to wrong."""
    root, python = comfyui_python
    pack = base / "custom_nodes" / "any_folder-name"

    def run(*parts):
        command = [str(python), str(HERE / "inside.py"), str(pack), str(base), *parts]
        done = subprocess.run(
            command, cwd=root, env=comfyui_env, capture_output=True, text=True, timeout=1800, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        checks = {}
        for line in done.stdout.splitlines():
            if line.startswith('{"check"'):
                result = json.loads(line)
                checks.setdefault(result["file"], {})[result["check"]] = result["wrong"]
        return checks

    return run


@pytest.fixture(scope="session")
def inside(run_checks):
    """What each check found wrong, by the file and the name of the check."""
    return run_checks()


class Server:
    """A running ComfyUI, spoken to as a headless user does: HTTP and nothing else."""

    def __init__(self, url, log, base):
        self.url, self.log, self.base = url, log, base

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def text(self, path):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read().decode()

    def post(self, path, body):
        """``(status, answer)``."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def queue(self, workflow):
        """Queue a workflow and return its id; it must be accepted."""
        status, answer = self.post("/prompt", {"prompt": workflow})
        assert status == 200, answer
        return answer["prompt_id"]

    def wait(self, prompt_id, seconds=180):
        """The history entry of a finished workflow."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.1)
        raise AssertionError(f"no result after {seconds} s:\n{self.log.read_text()[-2000:]}")

    def run(self, workflow):
        """Run a workflow to its end and return its history entry."""
        return self.wait(self.queue(workflow))

    def image(self, entry, node="9"):
        """The pixels of the picture that a node saved; the file also holds the workflow."""
        picture = entry["outputs"][node]["images"][0]
        query = f"?filename={picture['filename']}&subfolder={picture['subfolder']}&type={picture['type']}"
        with urllib.request.urlopen(f"{self.url}/view{query}", timeout=30) as answer:
            return Image.open(io.BytesIO(answer.read())).tobytes()


@pytest.fixture(scope="session")
def server(base, run_checks, comfyui_python, comfyui_env):
    """ComfyUI's real server on the CPU, with the LoRA files that two of the checks leave behind.

    COMFYUI_ARGS adds arguments, such as another ``--front-end-root``.
    """
    run_checks("composed_nodes", "refusals")
    root, python = comfyui_python
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(python), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory",
        str(base), "--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}", "--disable-api-nodes",
        "--disable-auto-launch", *shlex.split(os.environ.get("COMFYUI_ARGS", "")),
    ]  # fmt: skip
    log = base / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=root, env=comfyui_env, stdout=out, stderr=subprocess.STDOUT)
    running = Server(f"http://127.0.0.1:{port}", log, base)
    try:
        for _ in range(1200):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                running.get("/system_stats")
                break
            except OSError:
                time.sleep(0.1)
        running.process = process
        yield running
    finally:
        process.terminate()
        process.wait(30)


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


@pytest.fixture(scope="session")
def editor_page(browser, server):
    """The graph editor in a page that all tests share: loading it takes longer than most tests."""
    return Editor(browser, server.url, {"Comfy.VueNodes.Enabled": False})


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "nodes2"])
def editor(request, editor_page):
    """The page, empty, with the classic canvas and with Nodes 2.0; a message of ours in the console fails."""
    editor_page.setting("Comfy.VueNodes.Enabled", request.param)
    return editor_page
