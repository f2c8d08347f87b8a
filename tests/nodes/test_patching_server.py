"""How a merge gets onto MODEL and CLIP, in a running server: the same picture, within rounding."""

import pytest

from tests.nodes.pack import one_node

SAID = {"one patch": "model: 2 LoRAs in one patch for each of", "bypass": "model: 2 LoRAs by bypass:"}
TIES = {"method": "ties", "method.density": 0.3}
LINEAR = {"method": "linear", "method.density": None, "method.majority_sign_method": None}


def said(entry, node="10"):
    return entry["outputs"][node]["text"][0]


def near(a, b):
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 2


def applying(patching, **inputs):
    """Merge LoRAs from the list that the one-node example has, and Apply Merged LoRA in its place."""
    workflow = one_node()
    loras = workflow["10"]["inputs"]["loras"]
    workflow["20"] = {"class_type": "LoraAlloyStack", "inputs": {"loras": loras}}
    workflow["21"] = {"class_type": "LoraAlloyMerge", "inputs": {"stack": ["20", 0]}}
    inputs = {"model": ["4", 0], "clip": ["4", 1], "lora": ["21", 0], "strength_model": 1.0,
              "strength_clip": 1.0, "patching": patching, **inputs}  # fmt: skip
    workflow["10"] = {"class_type": "LoraAlloyApply", "inputs": inputs}
    return workflow


@pytest.mark.parametrize("patching", SAID)
def test_the_picture_is_that_of_patched_weights(server, patching):
    """From both nodes, by two methods; the node says what it did, which it does not by default."""
    default = server.run(one_node(**LINEAR))
    plain = server.image(default)
    assert server.image(server.run(one_node(**LINEAR, patching="auto"))) == plain
    assert not any(line in said(default) for line in SAID.values())
    entry = server.run(one_node(**LINEAR, patching=patching))
    assert near(server.image(entry), plain)
    assert SAID[patching] in said(entry) and SAID[patching].replace("model", "CLIP") in said(entry)
    ties = server.image(server.run(one_node(**TIES)))
    assert near(server.image(server.run(one_node(**TIES, patching=patching))), ties)
    assert not near(ties, plain)
    applied = server.run(applying(patching))
    assert near(server.image(applied), plain) and SAID[patching] in said(applied)


def test_a_choice_that_there_is_not(server):
    """Refused when it is queued, on both nodes."""
    for workflow in (one_node(patching="one_patch"), applying("bypas")):
        status, answer = server.post("/prompt", {"prompt": workflow})
        errors = answer["node_errors"]["10"]["errors"]
        assert status == 400 and any("patching" in str(error) for error in errors), errors


def test_bypass_with_steps(server):
    """The node stops, and says which of the two to give up."""
    loras = "<lora:sd15_a.safetensors:0.7:steps=0-0.5>"
    entry = server.run(one_node(**LINEAR, loras=loras, patching="bypass"))
    assert "patching bypass cannot change over the sampling" in str(entry["status"])
