"""The server under what headless users do to it: many prompts in a row, and interruptions."""

import json
import sys
import time

import psutil

from tests.nodes.pack import one_node


def resident(process):
    """Memory of a process in MB."""
    return psutil.Process(process.pid).memory_info().rss / 1e6


def small(strength, method):
    """One step and no decoding: the merge and the patching are most of the work."""
    workflow = one_node(loras=f"<lora:sd15_a:{strength}>\n<lora:sd15_b:0.3>", method=method)
    del workflow["8"], workflow["9"]
    workflow["3"]["inputs"] |= {"steps": 1, "cfg": 1.0}
    for text in ("6", "7"):  # the prompts stay encoded
        workflow[text]["inputs"]["clip"] = ["4", 1]
    workflow["9"] = {"class_type": "SaveLatent", "inputs": {"samples": ["3", 0], "filename_prefix": "many"}}
    return workflow


def test_a_hundred_strengths_need_no_more_memory(server):
    """A hundred prompts that differ in one strength: memory at the end is that of the twentieth."""
    sizes = []
    for i in range(100):
        entry = server.run(small(round(0.2 + i * 0.01, 2), "ties" if i % 2 else "dare_ties"))
        assert entry["status"]["status_str"] == "success", entry["status"]
        sizes.append(resident(server.process))
    sys.stdout.write(f"resident MB of the server, every tenth prompt: {[round(s) for s in sizes[9::10]]}\n")
    assert max(sizes[80:]) < max(sizes[10:30]) + 40


def work_on(server, prompt, seconds):
    """Wait until the server has spent so much processor time on a prompt."""
    server.until(lambda: any(item[1] == prompt for item in server.get("/queue")["queue_running"]))
    begun = server.worked()
    server.until(lambda: server.worked() > begun + seconds)


def test_interrupting_a_merge(server):
    """The merge ends within half a second of work, and the next picture is what it would have been."""
    before = server.image(server.run(one_node(loras="")))
    seconds = []
    for wait in (0.1, 0.3, 0.6):
        chosen = {"method": "peft", "method.density": 0.5, "method.combination_type": "dare_ties_svd"}
        prompt = server.queue(one_node(**chosen, seed=int(time.time() * 1000)))
        work_on(server, prompt, wait)
        pressed = server.worked()
        server.post("/interrupt", {})
        status = server.wait(prompt)["status"]
        seconds.append(server.worked() - pressed)
        messages = dict(status["messages"])
        assert status["status_str"] == "error", json.dumps(status)
        assert messages["execution_interrupted"]["node_type"] == "LoraAlloyLoader", messages
    assert max(seconds) < 0.5, seconds
    assert server.image(server.run(one_node(loras=""))) == before
