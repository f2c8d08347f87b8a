"""Epochs in the list of a node, through the server: a pattern is its files, and a new file is seen."""

import shutil

import pytest

from tests.nodes.pack import one_node


@pytest.fixture
def epochs(server):
    """Three epochs of one training in a folder of their own."""
    folder = server.base / "models" / "loras" / "epochs"
    folder.mkdir()
    for name, source in (("ink-2", "sd15_a"), ("ink-10", "sd15_b"), ("ink", "sd15_a")):
        shutil.copy(folder.parent / f"{source}.safetensors", folder / f"{name}.safetensors")
    yield folder
    shutil.rmtree(folder)


def merged(lines):
    return one_node(loras=lines, method="mean", **{"method.density": None})


def test_a_pattern_is_its_files(server, epochs):
    """The same picture as with all of them written out; the node says which files these are."""
    names = ("ink-2", "ink-10", "ink")
    written = "\n".join(f"<lora:epochs/{name}:0.8:0.5>" for name in names)
    wanted = server.image(server.run(merged(written)))
    for pattern in ("epochs/ink*", "ink*", "epochs/ink*.safetensors", "epochs/"):
        entry = server.run(merged(f"<lora:{pattern}:0.8:0.5>"))
        assert server.image(entry) == wanted
        said = entry["outputs"]["10"]["text"][0]
        assert f"{pattern} is 3 LoRAs: epochs/ink-2, epochs/ink-10, epochs/ink" in said
    stack = {"80": {"class_type": "LoraAlloyStack", "inputs": {"loras": "<lora:epochs/ink-*:1>"}}}
    stack["90"] = {"class_type": "PreviewAny", "inputs": {"source": ["80", 1]}}
    entry = server.run(stack)
    assert "epochs/ink-* is 2 LoRAs: epochs/ink-2, epochs/ink-10" in entry["outputs"]["80"]["text"][0]
    assert entry["outputs"]["90"]["text"][0].index("ink-2") < entry["outputs"]["90"]["text"][0].index(
        "ink-10"
    )


def test_a_new_epoch_is_seen(server, epochs):
    """The node runs again with it, and not without."""
    workflow = merged("<lora:epochs/ink-*:1>")
    first = server.image(server.run(workflow))
    cached = dict(server.run(workflow)["status"]["messages"])["execution_cached"]["nodes"]
    assert "10" in cached
    shutil.copy(epochs.parent / "sd15_c.safetensors", epochs / "ink-11.safetensors")
    entry = server.run(workflow)
    assert "epochs/ink-* is 3 LoRAs" in entry["outputs"]["10"]["text"][0]
    assert server.image(entry) != first


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("<lora:epochs/imk-*:1>", "did you mean 'ink-2'"),
        ("<lora:../loras/*:1>", "no LoRA file in the loras folders matches"),
        ("<lora:/etc/*:1>", "no LoRA file in the loras folders matches"),
    ],
)
def test_refused_at_the_door(server, epochs, line, says):
    status, answer = server.post("/prompt", {"prompt": merged(line)})
    assert status == 400 and says in str(answer["node_errors"]["10"])
