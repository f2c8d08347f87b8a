"""A running ComfyUI, spoken to as a headless user does: HTTP and nothing else."""

import io
import json
import os
import shlex
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import psutil
from PIL import Image

LIMIT = 600  # seconds for anything that ends: a machine under load must not fail a test
PAUSE = 0.05  # between two questions whether it has


class Server:
    """``process`` is ComfyUI's; what it writes to the console lies in the file ``log``."""

    def __init__(self, process, url, log, base):
        self.process, self.url, self.log, self.base = process, url, log, base

    def open(self, path):
        return urllib.request.urlopen(self.url + path, timeout=LIMIT)

    def get(self, path):
        with self.open(path) as answer:
            return json.load(answer)

    def text(self, path):
        with self.open(path) as answer:
            return answer.read().decode()

    def post(self, path, body):
        """``(status, answer)``."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def queue(self, workflow):
        """Queue a workflow and return its id; it must be accepted."""
        status, answer = self.post("/prompt", {"prompt": workflow})
        assert status == 200, answer
        return answer["prompt_id"]

    def until(self, ask):
        """Ask until the answer is true, and return it; fail when the server ends or takes far too long."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            assert self.process.poll() is None, f"ComfyUI ended:\n{self.log.read_text()[-3000:]}"
            if answer := ask():
                return answer
            time.sleep(PAUSE)
        raise AssertionError(f"nothing after {LIMIT} s:\n{self.log.read_text()[-2000:]}")

    def wait(self, prompt_id):
        """Return the history entry of a workflow when it has ended."""
        return self.until(lambda: self.get(f"/history/{prompt_id}"))[prompt_id]

    def run(self, workflow):
        """Run a workflow to its end and return its history entry."""
        return self.wait(self.queue(workflow))

    def pictures(self, entry, node="9"):
        """All pictures that a node saved."""
        found = []
        for picture in entry["outputs"][node]["images"]:
            query = f"?filename={picture['filename']}&subfolder={picture['subfolder']}&type={picture['type']}"
            with self.open(f"/view{query}") as answer:
                found.append(Image.open(io.BytesIO(answer.read())))
        return found

    def image(self, entry, node="9"):
        """The pixels of the first picture; the file also holds the workflow."""
        return self.pictures(entry, node)[0].tobytes()

    def worked(self):
        """Seconds of processor time that the server has used, whatever else the machine does."""
        spent = psutil.Process(self.process.pid).cpu_times()
        return spent.user + spent.system

    def answers(self):
        """True once it can be spoken to."""
        try:
            return bool(self.get("/system_stats"))
        except OSError:
            return False


def other_frontend():
    """The arguments for the frontend that LORA_ALLOY_FRONTEND names; nothing without it."""
    given = os.environ.get("LORA_ALLOY_FRONTEND")
    if not given:
        return []
    pages = sorted(Path(given).resolve().glob("**/index.html"), key=lambda page: len(page.parts))
    assert pages, f"LORA_ALLOY_FRONTEND: there is no index.html in {given}"
    return ["--front-end-root", str(pages[0].parent)]


@contextmanager
def running(root, python, env, base):
    """ComfyUI on the CPU with a base folder, from when it answers until it has ended.

    LORA_ALLOY_FRONTEND names a folder with another frontend than the one that is installed beside ComfyUI: an
    unpacked ``comfyui-frontend-package``, or its ``static``. COMFYUI_ARGS adds arguments.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(python), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory",
        str(base), "--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}", "--disable-api-nodes",
        "--disable-auto-launch", *other_frontend(), *shlex.split(os.environ.get("COMFYUI_ARGS", "")),
    ]  # fmt: skip
    log = base / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=root, env=env, stdout=out, stderr=subprocess.STDOUT)
    server = Server(process, f"http://127.0.0.1:{port}", log, base)
    try:
        server.until(server.answers)
        yield server
    finally:
        process.terminate()
        process.wait(LIMIT)
