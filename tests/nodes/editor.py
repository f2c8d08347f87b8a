"""ComfyUI's graph editor in headless Chromium, driven through the page's own ``app`` object.

    python -m tests.nodes.editor SERVER_URL

As a script it makes the editor-format example workflows, their thumbnails and the blueprint anew from the
examples in API format.
"""

import io
import json
import os
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from tests.nodes.layout import ADD_NOTE, FIX_SEEDS, LAYOUTS, PLACE, SIZES, WIDTHS, positions

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
LARGE, THUMBNAIL = (2400, 1350), (800, 450)
BLUEPRINT = "Compare Two Merges"
SWEEP = "Sweep settings in a grid"
DRAWING = {"Comfy.VueNodes.Enabled": False, "Comfy.ColorPalette": "dark"}  # of the thumbnails
# what would lie over the page at the first start
SEEN = {"Comfy.TutorialCompleted": True, "Comfy.OnboardingCoachmarks.Seen": ["appMode", "firstRun"]}
READY = """() => window.app?.graph && window.app?.extensionManager?.spinner === false
    && window.app.extensionManager.workflow.activeWorkflow
    && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100"""
LIMIT = 120_000  # ms that anything in the page may take: a machine under load must not fail a test
# a frame draws what changed, the next what the first one set off, such as the place of an element over a node
DRAWN = """async () => {
    for (let i = 0; i < 3; i++) await new Promise((done) => requestAnimationFrame(() => setTimeout(done)))
}"""
# ComfyUI tells extensions whenever it has put a workflow into the graph
COUNT_LOADS = """() => {
    window.loads = 0
    app.registerExtension({ name: 'Tests.CountLoads', afterConfigureGraph() { window.loads++ } })
}"""
HIDDEN = ".z-999, .z-999 *, .p-toast, .p-toast * { visibility: hidden !important }"  # all but the canvas
FIT = """([width, height]) => {
    const boxes = window.app.graph.nodes.map(({ pos, size }) => [pos[0], pos[1] - 50, size[0], size[1] + 50])
    const left = Math.min(...boxes.map((b) => b[0])), right = Math.max(...boxes.map((b) => b[0] + b[2]))
    const top = Math.min(...boxes.map((b) => b[1])), bottom = Math.max(...boxes.map((b) => b[1] + b[3]))
    const ds = window.app.canvas.ds
    ds.scale = Math.min(width / (right - left + 60), height / (bottom - top + 60))
    ds.offset[0] = width / ds.scale / 2 - (left + right) / 2
    ds.offset[1] = height / ds.scale / 2 - (top + bottom) / 2
    window.app.canvas.show_info = false
    window.app.canvas.setDirty(true, true)
}"""
# the nodes of a graph but some become one, with some of their widgets on it: the file of a blueprint
TO_BLUEPRINT = """([outside, widgets, name]) => {
    const graph = window.app.graph
    const inside = graph.nodes.filter((node) => !outside.includes(node.type))
    const { subgraph, node } = graph.convertToSubgraph(new Set(inside))
    subgraph.name = node.title = name
    for (const input of [...subgraph.inputs]) {
        if (["STRING", "INT", "FLOAT"].includes(input.type)) subgraph.removeInput(input)
    }
    for (const [id, widget, label] of widgets) {
        const owner = subgraph.nodes.find((other) => String(other.id) === id)
        const slot = owner.inputs.find((input) => input.widget?.name === widget)
        const input = subgraph.addInput(label, slot.type)
        input.connect(slot, owner)
    }
    const whole = graph.serialize()
    const [made] = whole.nodes.filter((other) => String(other.id) === String(node.id))
    made.pos = [0, 0]
    made.size = [380, 560]
    for (const input of made.inputs) input.link = null
    for (const output of made.outputs) output.links = []
    return { ...whole, nodes: [made], links: [], groups: [], last_link_id: 0, extra: {} }
}"""


class Editor:
    """A page with the editor; every console error and failed request is kept."""

    def __init__(self, browser, url, settings):
        self.page = browser.new_page(viewport={"width": 1700, "height": 1000})
        self.page.set_default_timeout(LIMIT)
        self.problems = []
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.problems.append(error.stack or str(error)))
        inside = (url, "data:", "blob:")
        self.page.route(
            "**/*", lambda route: route.continue_() if route.request.url.startswith(inside) else route.abort()
        )
        for key, value in (SEEN | settings).items():
            self.page.request.post(f"{url}/api/settings/{key}", data=json.dumps(value))
        self._url = url
        self.start()

    def start(self):
        """Open the page, or open it anew: no search box or dialog of an earlier test is left."""
        self.page.goto(self._url, wait_until="domcontentloaded")
        self.page.wait_for_function(READY)
        self.page.evaluate(COUNT_LOADS)
        self.drawn()

    def drawn(self):
        """Wait until the page shows what was done last."""
        self.page.evaluate(DRAWN)

    @contextmanager
    def reloading(self):
        """Wait at the end of the block until a workflow that it makes ComfyUI load again is there."""
        before = self.page.evaluate("() => window.loads")
        yield
        self.page.wait_for_function("(n) => window.loads > n", arg=before)
        self.drawn()

    def busy(self, act, tries=8):
        """The fewest CPU milliseconds that the page's main thread needs for ``act()``, of some tries.

        Unlike the time that passes, it does not grow with what else the machine has to do.
        """
        session = self.page.context.new_cdp_session(self.page)
        session.send("Performance.enable")

        def spent():
            metrics = session.send("Performance.getMetrics")["metrics"]
            return 1000 * next(each["value"] for each in metrics if each["name"] == "ThreadTime")

        times = []
        for _ in range(tries):
            before = spent()
            act()
            times.append(spent() - before)
        session.detach()
        return min(times)

    def ours(self):
        """The problems that come from this pack."""
        names = ("lora-alloy", "loraalloy", "any_folder-name", "lora_alloy")
        return [text for text in self.problems if any(name in text.lower() for name in names)]

    def setting(self, name, value):
        """Change a setting while the page is open."""
        self.page.evaluate("([n, v]) => window.app.extensionManager.setting.set(n, v)", [name, value])
        if name == "Comfy.VueNodes.Enabled":
            self.page.wait_for_function("(on) => Boolean(window.LiteGraph.vueNodesMode) === on", arg=value)
        self.drawn()

    @property
    def nodes2(self):
        return self.page.evaluate("() => Boolean(window.LiteGraph.vueNodesMode)")

    def load(self, workflow, name="example"):
        """Load a workflow of either format."""
        if "nodes" in workflow:
            self.page.evaluate("(w) => window.app.loadGraphData(w)", workflow)
        else:
            self.page.evaluate("([w, n]) => window.app.loadApiJson(w, n)", [workflow, name])
        self.drawn()

    def arrange(self, layout, note=True):
        """Put the nodes of a layout, as far as there are any, to their places; seeds are set to stay."""
        self.page.evaluate(FIX_SEEDS)
        made = self.page.evaluate(ADD_NOTE, [layout.title, layout.note]) if note else "note"
        sizes = self.page.evaluate(SIZES, WIDTHS)
        if note:
            sizes["note"] = sizes.pop(made)
        columns = [[spec for spec in column if spec.split()[0] in sizes] for column in layout.columns]
        places, lanes = positions(replace(layout, columns=[column for column in columns if column]), sizes)
        at = {made if node == "note" else node: place for node, place in places.items()}
        self.page.evaluate(PLACE, [at, list(zip(layout.lanes, lanes, strict=True)) if note else []])

    def workflow(self):
        """The graph in the editor's format, as it would be saved."""
        return json.loads(self.page.evaluate("() => JSON.stringify(window.app.graph.serialize())"))

    def prompt(self):
        """The graph in API format, as the editor would queue it."""
        return self.page.evaluate("async () => (await window.app.graphToPrompt()).output")

    def queue(self, server):
        """Queue the graph as the button does, and wait for its entry in the history; it must succeed."""
        with self.page.expect_response(lambda answer: urlsplit(answer.url).path == "/api/prompt") as answer:
            self.page.evaluate("() => window.app.queuePrompt(0, 1)")
        entry = server.wait(answer.value.json()["prompt_id"])
        assert entry["status"]["status_str"] == "success", entry["status"]
        return entry

    def shot(self, path):
        """A small picture of the whole graph."""
        before = self.page.viewport_size
        self.page.set_viewport_size({"width": LARGE[0], "height": LARGE[1]})
        self.page.evaluate(FIT, LARGE)
        self.page.wait_for_timeout(1500)
        whole = Image.open(io.BytesIO(self.page.screenshot(style=HIDDEN)))
        whole.convert("RGB").resize(THUMBNAIL, Image.Resampling.LANCZOS).save(path, quality=80, optimize=True)
        self.page.set_viewport_size(before)

    def blueprint(self, outside, widgets, name):
        """The graph as a blueprint: one node with what is inside, but for the nodes of some types."""
        return self.page.evaluate(TO_BLUEPRINT, [outside, widgets, name])


def make_examples(url):
    """Write ``NAME.json`` and ``NAME.jpg`` of each layout from ``api/NAME.json``, and the blueprint."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name, layout in LAYOUTS.items():
            # a page of its own: the editor keeps a seed that the next workflow leaves out
            editor = Editor(browser, url, DRAWING)
            path = ROOT / "example_workflows" / "api" / f"{name}.json"
            editor.load(json.loads(path.read_text(encoding="utf-8")), name)
            editor.arrange(layout)
            editor.drawn()
            target = path.parents[1] / path.name
            target.write_text(json.dumps(editor.workflow(), indent=1) + "\n", encoding="utf-8")
            editor.shot(target.with_suffix(".jpg"))
            editor.page.close()
        editor = Editor(browser, url, DRAWING)
        make_blueprint(editor)
        browser.close()


def make_blueprint(editor):
    """The sweep example with one sweep, of the method; what one brings oneself stays outside."""
    path = ROOT / "example_workflows" / "api" / f"{SWEEP}.json"
    prompt = json.loads(path.read_text(encoding="utf-8"))
    del prompt["16"], prompt["17"]["inputs"]["method"]
    prompt["17"]["inputs"]["values"] = "linear, ties"
    editor.load(prompt, BLUEPRINT)
    editor.arrange(LAYOUTS[SWEEP], note=False)
    widgets = [["10", "loras", "loras"], ["17", "parameter", "parameter"], ["17", "values", "values"]]
    widgets += [["6", "text", "prompt"], ["7", "text", "negative prompt"]]
    widgets += [["3", name, name] for name in ("seed", "steps", "cfg")]
    outside = ["CheckpointLoaderSimple", "EmptyLatentImage", "SaveImage"]
    made = editor.blueprint(outside, widgets, BLUEPRINT)
    path = ROOT / "subgraphs" / f"{BLUEPRINT}.json"
    path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make_examples(sys.argv[1])
