"""Recording, distilling and stopping through ComfyUI's server, and the stop button in the editor."""

from tests.nodes.list_widget import EMPTY
from tests.nodes.pack import ROOT, example

EXAMPLE = ROOT / "example_workflows" / "api" / "Distill four LoRAs into one.json"
STOP = "/lora_alloy/stop"
# two LoRAs, of which one has no part in the text encoder's training: strength 0 there
TWO = "<lora:sd15_a:0.5:0:prompt=a cat>\n<lora:sd15_b:0.5:0:prompt=ink>"
PRESS = """() => {
    const node = app.graph.nodes.find(({ type }) => type === 'LoraAlloyDistill')
    node.widgets.find(({ type }) => type === 'button').callback()
}"""


def distilling(**inputs):
    """The example's recording and distillation, and nothing else; ``inputs`` are of Distill LoRAs."""
    workflow = {name: node for name, node in example(EXAMPLE).items() if name in ("4", "20", "22", "15")}
    workflow["20"]["inputs"] |= {"loras": TWO, "steps": 2, "keep": "", "cfg": 1.0}
    workflow["22"]["inputs"] |= {"steps": 2, "batch": 2, "rank": 4} | inputs
    return workflow


def text_of(entry, node="22"):
    """What a node says at the end."""
    assert entry["status"]["status_str"] == "success", entry["status"]
    return entry["outputs"][node]["text"][0]


def test_a_recording_is_made_once(server):
    """Other settings of the training record nothing again, and each LoRA is compared with linear."""
    server.run(distilling())
    entry = server.run(distilling(rank=2))
    cached = dict(entry["status"]["messages"])["execution_cached"]["nodes"]
    assert "20" in cached and "22" not in cached
    lines = text_of(entry).splitlines()
    assert "rank 2, 2 steps" in lines[0]
    assert all(
        any(f"{name}: " in line and "(linear " in line for line in lines) for name in ("sd15_a", "sd15_b")
    )
    assert "read back and compared" in text_of(entry, "15")


def test_stop_by_a_request(server):
    """For headless use: the training ends, and the nodes after it go on with what was learned."""
    assert server.post(STOP, {}) == (200, {"stopped": 0})
    queued = server.queue(distilling(steps=5000))
    server.until(lambda: server.post(STOP, {"node": "22"})[1]["stopped"] == 1)
    entry = server.wait(queued)
    assert "stopped after" in text_of(entry)
    assert "read back and compared" in text_of(entry, "15")
    assert server.post(STOP, {"node": "nowhere"}) == (200, {"stopped": 0})


def test_cancel_keeps_nothing(server):
    """The training ends without a result, and nothing after it runs."""
    queued = server.queue(distilling(steps=5001))
    server.until(lambda: server.get(STOP)["running"] == ["22"])
    server.post("/interrupt", {})
    entry = server.wait(queued)
    assert "execution_interrupted" in dict(entry["status"]["messages"])
    assert "15" not in entry["outputs"] and server.get(STOP) == {"running": []}


def test_a_request_that_cannot_be_read(server):
    """An answer with the reason."""
    status, answer = server.post(STOP, [1])
    assert status == 400 and "JSON object" in answer["error"]


def test_the_stop_button(editor_page, server):
    """Pressed while the page's own prompt runs, it asks until the training is there."""
    editor_page.problems.clear()
    editor_page.load(distilling(steps=5002))
    assert all("stop" not in str(node["inputs"]).lower() for node in editor_page.prompt().values())
    page = editor_page.page
    queued = page.evaluate("async () => { await app.queuePrompt(0, 1) }")
    assert queued is None
    running = server.until(lambda: [item[1] for item in server.get("/queue")["queue_running"]])

    def ended():
        page.evaluate(PRESS)
        return running[0] in server.get(f"/history/{running[0]}")

    server.until(ended)
    assert "stopped after" in text_of(server.wait(running[0]))
    assert not editor_page.ours()
    page.evaluate(EMPTY)
