"""Merge Loaded LoRAs in a running server: after ComfyUI's own loaders, and after ones as other packs have."""

import json

import pytest
from safetensors import safe_open

from tests.nodes.pack import ROOT, at_small_size, example, one_node

EXAMPLE = ROOT / "example_workflows" / "api" / "Merge the LoRAs of other loaders.json"
ROWS = (("sd15_a.safetensors", 0.7, 0.4), ("sd15_b.safetensors", -0.5, 0.9))
TIES = {"method": "ties", "method.density": 0.3}


def core_chain(rows=ROWS):
    """ComfyUI's own Load LoRA, once for each row; the last is node 21."""
    nodes, before = {}, "4"
    for number, (name, strength, strength_clip) in zip(range(22 - len(rows), 22), rows, strict=True):
        nodes[str(number)] = {
            "class_type": "LoraLoader",
            "inputs": {
                "model": [before, 0], "clip": [before, 1], "lora_name": name, "strength_model": strength,
                "strength_clip": strength_clip,
            },
        }  # fmt: skip
        before = str(number)
    return nodes


def rows_loader():
    """One node with all rows, another one switched off."""
    rows = {
        f"lora_{i}": {"on": True, "lora": name, "strength": s, "strengthTwo": c}
        for i, (name, s, c) in enumerate(ROWS, start=1)
    }
    return {"21": {"class_type": "RowsLoader", "inputs": {"model": ["4", 0], "clip": ["4", 1], **rows}}}


def tags_loader(rows=ROWS):
    """A text with tags, each with one strength."""
    text = " ".join(f"<lora:{name.removesuffix('.safetensors')}:{s}>" for name, s, _ in rows)
    inputs = {"model": ["4", 0], "clip": ["4", 1], "text": f"a fox {text}"}
    return {"21": {"class_type": "TagsLoader", "inputs": inputs}}


def with_loader(nodes, merge=None, **more):
    """The example with other loaders; without ``merge`` the sampler follows them directly."""
    workflow = example(EXAMPLE)
    for number in ("20", "21", *(() if more.pop("saved", False) else ("15", "16"))):
        del workflow[number]
    workflow |= nodes
    if merge is None:
        del workflow["10"]
        text = json.dumps(workflow).replace('["10",', '["21",')
        return at_small_size(json.loads(text))
    inputs = {"model": ["21", 0], "clip": ["21", 1], **merge, **more}
    workflow["10"]["inputs"] = inputs
    return workflow


def said(entry, node="10"):
    return entry["outputs"][node]["text"][0]


@pytest.mark.parametrize("nodes", [core_chain(), rows_loader()], ids=["core", "rows"])
def test_the_picture_is_that_of_load_and_merge(server, nodes):
    """With ``linear`` that of the loaders, to the last pixel; with ``ties`` that of the same list."""
    loaded = server.image(server.run(with_loader(nodes)))
    linear = server.run(with_loader(nodes, {"method": "linear"}))
    assert server.image(linear) == loaded
    ties = server.run(with_loader(nodes, TIES))
    listed = server.image(server.run(one_node(method="ties", **{"method.density": 0.3})))
    assert server.image(ties) == listed != loaded
    text = said(ties)
    assert "ties of 2 LoRAs" in text and "not known" not in text
    for name, strength, strength_clip in ROWS:
        assert f"{name}: {strength} (CLIP {strength_clip})" in text, text


def test_a_loader_that_takes_the_parts_one_by_one(server):
    """One file for MODEL and for CLIP is one LoRA."""
    entry = server.run(with_loader(tags_loader(), TIES))
    lines = "\n".join(f"<lora:{name}:{s}>" for name, s, _ in ROWS)
    listed = server.run(one_node(loras=lines, method="ties", **{"method.density": 0.3}))
    assert server.image(entry) == server.image(listed)
    assert "ties of 2 LoRAs" in said(entry) and "sd15_a.safetensors: 0.7, " in said(entry)


def test_what_is_on_a_model_is_saved_as_one_lora(server):
    """Loaded again, the file gives the picture that the chain gave; it names its sources."""
    workflow = with_loader(core_chain(), {"method": "linear"}, saved=True)
    workflow["15"]["inputs"] |= {"filename_prefix": "loras/from_model", "dtype": "float32"}
    entry = server.run(workflow)
    assert "image" in str(entry["outputs"]["16"])
    (name,) = (path.name for path in (server.base / "output" / "loras").glob("from_model_*.safetensors"))
    with safe_open(server.base / "output" / "loras" / name, "pt") as file:
        recipe = json.loads(file.metadata()["lora_alloy"])
    named = [(one["name"], one["weight"], one["text_weight"]) for one in recipe["sources"]]
    assert named == [(name.removesuffix(".safetensors"), s, c) for name, s, c in ROWS]
    assert all(len(one["sha256"]) == 64 for one in recipe["sources"])
    again = server.run(with_loader(core_chain([(name, 1.0, 1.0)])))
    pairs = zip(server.image(again), server.image(entry), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 1


def test_nothing_loaded_is_said(server):
    """Without LoRAs the model passes through; a misspelled parameter is refused when it is queued."""
    bare = with_loader({}, TIES | {"model": ["4", 0], "clip": ["4", 1]})
    entry = server.run(bare)
    assert "There is no LoRA on MODEL or CLIP" in said(entry)
    assert server.image(entry) == server.image(server.run(one_node(loras="")))
    status, answer = server.post("/prompt", {"prompt": with_loader(core_chain(), {"method": "tise"})})
    errors = answer["node_errors"]["10"]["errors"]
    assert status == 400 and any("did you mean 'ties'" in one["details"] for one in errors), errors
