"""The list widget of one node in the editor's page, worked with mouse and keyboard."""

from tests.nodes.editor import LIMIT

IDS = "() => app.canvas.graph.nodes.map((node) => String(node.id))"
ADD = """([type, text, at]) => {
    const node = LiteGraph.createNode(type)
    node.pos = at
    app.graph.add(node)
    if (text) node.widgets.find((widget) => widget.name === 'loras').value = text
    app.graph.change?.()
    app.extensionManager.workflow.activeWorkflow?.changeTracker?.captureCanvasState?.()
    return String(node.id)
}"""
# numbers of nodes are not used again: the editor keeps the values of cleared nodes by their numbers
EMPTY = """() => {
    app.canvas.setGraph(app.rootGraph ?? app.graph)
    app.graph.clear()
    app.graph.state.lastNodeId = Date.now() % 1e9
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [200, 100]
}"""
FIND = """([id, name]) => {
    const graphs = [app.canvas.graph, app.rootGraph ?? app.graph, ...(app.graph.subgraphs?.values() ?? [])]
    const node = graphs.flatMap((graph) => graph.nodes).find((other) => String(other.id) === id)
    return node?.widgets.find((widget) => widget.name === name)
}"""

FOCUS_LIMIT = 30_000  # ms: undo makes the graph anew before the focus comes back


class ListWidget:
    """``node`` is the node's id; elements are looked up anew each time, since undo makes new ones."""

    def __init__(self, editor, node, name="loras"):
        self.page, self.node, self.name = editor.page, node, name

    @property
    def value(self):
        return self.page.evaluate(f"(at) => ({FIND})(at).value", [self.node, self.name])

    @property
    def root(self):
        """The widget's own element, which must be the one in the page."""
        at = [self.node, self.name]
        self.page.wait_for_function(f"(at) => ({FIND})(at)?.element.isConnected", arg=at)
        self.page.evaluate(f"(at) => {{ ({FIND})(at).element.dataset.test = at.join() }}", at)
        return self.page.locator(f'.lora-alloy[data-test="{",".join(at)}"]')

    def part(self, name):
        """A control, such as ``strength:0``."""
        return self.root.locator(f'[data-part="{name}"]')

    def becomes(self, *lines):
        """Wait until the value has these lines, and that the rows on the screen are as many."""
        from playwright.sync_api import TimeoutError, expect

        text = "\n".join(lines)
        wanted = f"([id, name, text]) => ({FIND})([id, name])?.value === text"
        try:
            self.page.wait_for_function(wanted, arg=[self.node, self.name, text])
        except TimeoutError as error:
            raise AssertionError(f"{self.value!r} is not {text!r}") from error
        shown = [line for line in lines if not line.startswith("#") or "<lora:" in line]
        expect(self.root.locator(".row")).to_have_count(len(shown), timeout=LIMIT)

    def has_focus(self, part):
        """Wait until the focus is on this control of the list."""
        from playwright.sync_api import TimeoutError

        held = (
            "document.activeElement?.closest('[data-part]')?.dataset.part ?? document.activeElement?.tagName"
        )
        try:
            self.page.wait_for_function(f"(part) => ({held}) === part", arg=part, timeout=FOCUS_LIMIT)
        except TimeoutError as error:
            raise AssertionError(f"the focus is on {self.page.evaluate(held)}, not on {part}") from error

    def press(self, *keys):
        """Press keys, wherever the focus is."""
        for key in keys:
            self.page.keyboard.press(key)

    def drag(self, name, right=0, down=0, keys=()):
        """Drag from the middle of a control."""
        box = self.part(name).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for key in keys:
            self.page.keyboard.down(key)
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        for i in range(1, 6):
            self.page.mouse.move(x + right * i / 5, y + down * i / 5)
        self.page.mouse.up()
        for key in keys:
            self.page.keyboard.up(key)

    def paste(self, text):
        """Paste as the clipboard would, while the list has the focus."""
        self.root.evaluate(
            """(root, text) => {
                root.focus()
                const data = new DataTransfer()
                data.setData('text/plain', text)
                const options = { clipboardData: data, bubbles: true, cancelable: true }
                root.dispatchEvent(new ClipboardEvent('paste', options))
            }""",
            text,
        )


def add_list(editor, text="", kind="LoraAlloyStack", at=(60, 80)):
    """An empty graph with one such node in it."""
    editor.page.keyboard.press("Escape")
    editor.page.evaluate(EMPTY)
    widget = ListWidget(editor, editor.page.evaluate(ADD, [kind, text, list(at)]))
    widget.becomes(*text.splitlines())
    return widget


def only(editor):
    """The list of the one node."""
    (node,) = editor.page.evaluate(IDS)
    return ListWidget(editor, node)


def queued(editor):
    """The lists that a prompt would have."""
    return [node["inputs"]["loras"] for node in editor.prompt().values() if "loras" in node["inputs"]]
