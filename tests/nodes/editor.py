"""ComfyUI's graph editor in headless Chromium, driven through the page's own ``app`` object.

    python -m tests.nodes.editor SERVER_URL

As a script it makes the editor-format example workflows anew from those in API format.
"""

import json
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
# what would lie over the page at the first start
SEEN = {"Comfy.TutorialCompleted": True, "Comfy.OnboardingCoachmarks.Seen": ["appMode", "firstRun"]}
READY = """() => window.app?.graph && window.app?.extensionManager
    && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100"""
# columns from left to right by the longest way from a node without inputs, each node below the last
ARRANGE = """() => {
    const nodes = window.app.graph.nodes, links = window.app.graph.links
    const depths = new Map()
    const depth = (node) => {
        if (!depths.has(node.id)) {
            const above = (node.inputs ?? []).map((input) => links.get(input.link)?.origin_id)
                .filter((id) => id !== undefined).map((id) => depth(window.app.graph.getNodeById(id)) + 1)
            depths.set(node.id, Math.max(0, ...above))
        }
        return depths.get(node.id)
    }
    const columns = []
    for (const node of nodes) (columns[depth(node)] ??= []).push(node)
    let left = 40
    for (const column of columns) {
        let top = 80
        for (const node of column) {
            node.pos = [left, top]
            top += Math.round(node.size[1]) + 70
        }
        left += Math.max(225, ...column.map((node) => Math.round(node.size[0]))) + 60
    }
}"""


class Editor:
    """A page with the editor; every console error and failed request is kept."""

    def __init__(self, browser, url, settings):
        self.page = browser.new_page(viewport={"width": 1700, "height": 1000})
        self.problems = []
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.problems.append(error.stack or str(error)))
        inside = (url, "data:", "blob:")
        self.page.route(
            "**/*", lambda route: route.continue_() if route.request.url.startswith(inside) else route.abort()
        )
        for key, value in (SEEN | settings).items():
            self.page.request.post(f"{url}/api/settings/{key}", data=json.dumps(value))
        self.page.goto(url, wait_until="domcontentloaded")
        self.page.wait_for_function(READY, timeout=180_000)
        self.page.wait_for_timeout(1000)

    def ours(self):
        """The problems that come from this pack."""
        names = ("lora-alloy", "loraalloy", "any_folder-name", "lora_alloy")
        return [text for text in self.problems if any(name in text.lower() for name in names)]

    def setting(self, name, value):
        """Change a setting while the page is open."""
        self.page.evaluate("([n, v]) => window.app.extensionManager.setting.set(n, v)", [name, value])
        self.page.wait_for_timeout(500)

    @property
    def nodes2(self):
        return self.page.evaluate("() => Boolean(window.LiteGraph.vueNodesMode)")

    def load(self, workflow, name="example"):
        """Load a workflow of either format."""
        if "nodes" in workflow:
            self.page.evaluate("(w) => window.app.loadGraphData(w)", workflow)
        else:
            self.page.evaluate("([w, n]) => window.app.loadApiJson(w, n)", [workflow, name])
        self.page.wait_for_timeout(500)

    def arrange(self):
        self.page.evaluate(ARRANGE)

    def workflow(self):
        """The graph in the editor's format, as it would be saved."""
        return json.loads(self.page.evaluate("() => JSON.stringify(window.app.graph.serialize())"))

    def prompt(self):
        """The graph in API format, as the editor would queue it."""
        return self.page.evaluate("async () => (await window.app.graphToPrompt()).output")

    def shot(self, path):
        """A picture of the whole graph."""
        self.page.evaluate("() => { window.app.canvas.fitViewToSelectionAnimated?.() }")
        self.page.keyboard.press(".")
        self.page.wait_for_timeout(1200)
        self.page.screenshot(path=str(path))


def make_examples(url):
    """Write each ``NAME.json`` beside its ``NAME_api.json``."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        editor = Editor(browser, url, {"Comfy.VueNodes.Enabled": False})
        for path in sorted((ROOT / "example_workflows").glob("*_api.json")):
            editor.load(json.loads(path.read_text(encoding="utf-8")), path.stem)
            editor.arrange()
            target = path.with_name(path.name.replace("_api", ""))
            target.write_text(json.dumps(editor.workflow(), indent=1) + "\n", encoding="utf-8")
        browser.close()


if __name__ == "__main__":
    make_examples(sys.argv[1])
