"""Strengths that change over the sampling, through the server: pictures, refusals, what is said."""

import pytest

from tests.nodes.pack import one_node

A, B = "<lora:sd15_a.safetensors:0.7:0.4>", "<lora:sd15_b.safetensors:-0.5:0.9>"


def timed(*steps, **inputs):
    """The one-node example, four steps long, with steps on its two rows."""
    rows = [
        row.replace(">", f":steps={text}>") if text else row for row, text in zip((A, B), steps, strict=True)
    ]
    workflow = one_node(loras="\n".join(rows), **inputs)
    workflow["3"]["inputs"]["steps"] = 4
    return workflow


def test_pictures_follow_the_steps(server):
    """All of the sampling is the picture without steps; a part of it and a curve are others that stay."""
    whole = server.image(server.run(timed("0-1", "0-1")))
    assert whole == server.image(server.run(timed("", "")))
    part, curve = timed("", "0-0.5"), timed("0:1 1:0", "0-0.5")
    pictures = [server.image(server.run(workflow)) for workflow in (part, curve)]
    assert len({whole, *pictures}) == 3
    again = timed("", "0-0.5", strength=1.0)  # run anew
    assert server.image(server.run(again)) == pictures[0]
    assert server.image(server.run(timed("", "", strength=1.0))) == whole


def test_hooks_and_model_give_one_picture(server):
    """HOOKS on both conditionings and the bare model, against MODEL alone; CLIP is the same."""
    workflow = timed("", "0-0.5")
    entry = server.run(workflow)
    place = server.get("/object_info")["LoraAlloyLoader"]["output_name"].index("hooks")
    assert place == 5, "a saved graph keeps links by their places"
    for at, name in (("30", "6"), ("31", "7")):
        inputs = {"cond_NEW": [name, 0], "strength": 1.0, "set_cond_area": "default", "hooks": ["10", place]}
        workflow[at] = {"class_type": "ConditioningSetProperties", "inputs": inputs}
    workflow["3"]["inputs"] |= {"model": ["4", 0], "positive": ["30", 0], "negative": ["31", 0]}
    assert server.image(server.run(workflow)) == server.image(entry)


@pytest.mark.parametrize(
    ("steps", "says"),
    [("0-25", "outside [0, 1]"), ("0.5", "cannot read"), ("0-0.5 0.5:1", "cannot be mixed")],
)
def test_refused_at_the_door(server, steps, says):
    """A text that cannot be read, when it is queued."""
    status, answer = server.post("/prompt", {"prompt": timed("", steps)})
    assert status == 400
    (error,) = answer["node_errors"]["10"]["errors"]
    assert says in error["details"] and "sd15_b" in error["details"], error


def test_the_node_lists_the_windows(server):
    """Which LoRAs are on, and that a file and CLIP know nothing of it."""
    workflow = timed("", "0:1 0.5:1 0.5:0.5")
    workflow["15"] = {
        "class_type": "LoraAlloySave",
        "inputs": {"lora": ["10", 2], "filename_prefix": "loras/timed", "dtype": "float32"},
    }
    outputs = server.run(workflow)["outputs"]
    lines = outputs["10"]["text"][0].splitlines()
    assert lines[1:3] == [
        "0 to 0.5 of the sampling: sd15_a 0.7, sd15_b -0.5",
        "0.5 to 1 of the sampling: sd15_a 0.7, sd15_b -0.25",
    ]
    assert "steps= of sd15_b holds in model and hooks" in outputs["10"]["text"][0]
    assert "steps= of sd15_b cannot be part of a LoRA" in outputs["15"]["text"][0]
