"""The output trigger_words of Load & Merge LoRAs and LoRA Stack, through the server."""

import json

import pytest
from safetensors.torch import load_file, save_file

from tests.nodes.pack import one_node


@pytest.fixture
def words(server):
    """Two LoRAs with trigger words, one by notes and one by its metadata, and what runs leave behind."""
    folder = server.base / "models" / "loras"
    tensors = load_file(folder / "sd15_a.safetensors")
    made = [folder / "worded_a.safetensors", folder / "worded_b.safetensors", folder / "worded_a.json"]
    save_file(tensors, made[0])
    save_file(tensors, made[1], {"modelspec.trigger_phrase": "Mia, oil painting"})
    made[2].write_text(json.dumps({"activation text": "mia, red scarf"}))
    yield made[2]
    for path in made:
        path.unlink()


def said(server, workflow, output):
    """The text of an output, from a node that shows it."""
    workflow |= {"90": {"class_type": "PreviewAny", "inputs": {"source": output}}}
    entry = server.run(workflow)
    assert entry["status"]["status_str"] == "success", entry["status"]
    return entry["outputs"]["90"]["text"][0]


def output_of(server, node):
    """The place of the output among those of the node."""
    place = {"LoraAlloyLoader": 4, "LoraAlloyStack": 2}[node]  # a saved graph keeps links by their places
    assert server.get("/object_info")[node]["output_name"][place] == "trigger_words"
    return place


def test_of_load_and_merge(server, words):
    """Of the rows that are on and of a stack, in order, each once; those of a LoRA without any are none."""
    lines = ["<lora:worded_b:1>", "<lora:worded_a:0.5>", "<lora:sd15_b:1>", "# <lora:worded_a:1>"]
    at = output_of(server, "LoraAlloyLoader")
    workflow = one_node(loras="\n".join(lines))
    assert said(server, workflow, ["10", at]) == "Mia, oil painting, red scarf"
    workflow["10"]["inputs"] |= {"loras": "<lora:worded_b:1>", "stack": ["80", 0]}
    workflow["80"] = {"class_type": "LoraAlloyStack", "inputs": {"loras": "<lora:worded_a:1>"}}
    assert said(server, workflow, ["10", at]) == "mia, red scarf, oil painting"
    workflow["10"]["inputs"] |= {"loras": "# <lora:worded_b:1>", "stack": ["80", 1]}
    assert said(server, workflow, ["10", at]) == "mia, red scarf"


def test_of_a_stack(server, words):
    """A LoRA of another node has no file, and no words."""
    stack = {"loras": "<lora:worded_a:1>", "lora.lora0": ["81", 0]}
    workflow = {
        "80": {"class_type": "LoraAlloyStack", "inputs": stack},
        "81": {"class_type": "LoraAlloyMerge", "inputs": {"stack": ["82", 0]}},
        "82": {"class_type": "LoraAlloyStack", "inputs": {"loras": "<lora:worded_b:1>"}},
    }
    assert said(server, workflow, ["80", output_of(server, "LoraAlloyStack")]) == "mia, red scarf"


@pytest.mark.parametrize("node", ["LoraAlloyLoader", "LoraAlloyStack"])
def test_a_changed_note_is_noticed(server, words, node):
    """The node runs again with the same inputs, though no LoRA has changed."""
    workflow = {"10": {"class_type": "LoraAlloyStack", "inputs": {"loras": "<lora:worded_a:1>"}}}
    if node == "LoraAlloyLoader":
        workflow = one_node(loras="<lora:worded_a:1>")
    output = ["10", output_of(server, node)]
    assert said(server, workflow, output) == "mia, red scarf"
    words.write_text(json.dumps({"activation text": "mia, blue coat, hat"}))
    assert said(server, workflow, output) == "mia, blue coat, hat"
    words.with_suffix(".metadata.json").write_text(json.dumps({"civitai": {"trainedWords": ["new"]}}))
    try:
        assert said(server, workflow, output) == "new"
    finally:
        words.with_suffix(".metadata.json").unlink()
