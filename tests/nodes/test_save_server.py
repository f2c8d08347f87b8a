"""Save LoRA through the server: preview, words and notes of the sources, ranks by need."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from tests.nodes.pack import one_node, pack_module


def saving(lines, **inputs):
    """Load, merge and save, with the picture of the merge at hand as node 8."""
    workflow = one_node(loras=lines, method="linear", **{"method.density": None})
    save = {"lora": ["10", 2], "filename_prefix": "loras/made", **inputs}
    return workflow | {"15": {"class_type": "LoraAlloySave", "inputs": save}}


@pytest.fixture
def saved(server):
    """Run and return what the node said, the file and its metadata; the files are removed afterwards."""
    folder = server.base / "output" / "loras"

    def run(lines="<lora:sd15_a:1>\n<lora:sd15_b:0.5>", **inputs):
        entry = server.run(saving(lines, **inputs))
        assert entry["status"]["status_str"] == "success", entry["status"]
        said = entry["outputs"]["15"]["text"][0]
        path = server.base / "output" / said.partition(":")[0]
        weights = path / "adapter_model.safetensors" if path.is_dir() else path
        with safe_open(weights, "pt") as file:
            return said, path, file.metadata()

    yield run
    for path in folder.glob("made*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_preview(server, saved):
    """The first picture of the batch beside the file and small in it; the card shows it."""
    _, path, metadata = saved(preview=["8", 0])
    picture = path.with_name(f"{path.stem}.preview.png")
    with Image.open(picture) as image:
        pixels = np.asarray(image)
        assert image.format == "PNG" and not image.info
    assert pixels.shape == (64, 64, 3) and pixels.std() > 0
    kind, _, data = metadata["modelspec.thumbnail"].partition(",")
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert kind == "data:image/jpeg;base64" and max(small.size) <= 256
    with server.open(f"/lora_alloy/preview?name={path.name}") as answer:
        assert answer.status == 200
    assert not list(path.parent.glob(".*.part"))


def test_without_a_preview(saved):
    _, path, metadata = saved()
    assert "modelspec.thumbnail" not in metadata and not path.with_name(f"{path.stem}.preview.png").exists()


def test_a_large_picture_of_a_batch(server, saved):
    """The longest side is 1024 at most."""
    image = {
        "class_type": "EmptyImage",
        "inputs": {"width": 2048, "height": 512, "batch_size": 2, "color": 255},
    }
    workflow = saving("<lora:sd15_a:1>", preview=["70", 0]) | {"70": image}
    said = server.run(workflow)["outputs"]["15"]["text"][0]
    path = server.base / "output" / said.partition(":")[0]
    with Image.open(path.with_name(f"{path.stem}.preview.png")) as picture:
        assert picture.size == (1024, 256) and picture.getpixel((0, 0)) == (0, 0, 255)


def test_a_picture_that_is_there_is_kept(server, saved):
    """A picture without its LoRA takes its number; a name that is taken meanwhile is not overwritten."""
    _, path, _ = saved("<lora:sd15_a:0.8>")
    number = int(path.stem.rpartition("_")[0].rpartition("_")[2]) + 1
    stale = path.with_name(f"made_{number:05}_.preview.png")
    stale.write_bytes(b"kept")
    _, again, _ = saved("<lora:sd15_a:0.9>", preview=["8", 0])
    assert again.name == f"made_{number + 1:05}_.safetensors" and stale.read_bytes() == b"kept"
    pictures = pack_module("nodes.values.pictures")
    with pytest.raises(pack_module("merge_ops").ParameterError, match="already exists"):
        pictures.write_picture(Image.new("RGB", (4, 4)), stale)
    assert stale.read_bytes() == b"kept" and not list(stale.parent.glob(".*.part"))


def test_words_and_notes(server, saved):
    """Of the sources, from beside their files; the card of the saved file shows them."""
    folder = server.base / "models" / "loras"
    made = []
    for name, facts in (
        ("noted_a", {"activation text": "mia, scarf", "notes": "best at 0.7"}),
        ("noted_b", {"activation text": "ink"}),
    ):
        shutil.copy(folder / "sd15_a.safetensors", folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(facts))
        made += [folder / f"{name}.safetensors", folder / f"{name}.json"]
    try:
        _, path, metadata = saved("<lora:noted_a:1>\n<lora:noted_b:0.5>")
    finally:
        for each in made:
            each.unlink()
    assert metadata["modelspec.trigger_phrase"] == "mia, scarf, ink"
    assert metadata["modelspec.usage_hint"] == "noted_a: best at 0.7"
    facts = server.get(f"/lora_alloy/info?name={path.name}")
    assert facts["trigger_words"] == ["mia", "scarf", "ink"] and facts["notes"] == "noted_a: best at 0.7"


def test_ranks_by_need(server, saved):
    """A share of the energy, or a size; both at once are refused."""
    lines = "<lora:sd15_a:1>\n<lora:sd15_b:0.25>"
    said, _, metadata = saved(lines, energy=0.6)
    assert "keep 6" in said or "keeps 6" in said or "keep 7" in said or "keeps 7" in said
    assert json.loads(metadata["lora_alloy"])["ranks"] == {"energy": 0.6}
    _, whole, _ = saved(lines)
    most = whole.stat().st_size * 0.7
    _, path, _ = saved(lines, size_mb=most / 1e6, energy=0)
    assert most * 0.8 < path.stat().st_size <= most
    entry = server.run(saving("<lora:sd15_a:1>", size_mb=0.000001))
    assert "too small" in json.dumps(entry["status"])
    entry = server.run(saving("<lora:sd15_a:1>", size_mb=1, energy=0.5))
    assert "not both" in json.dumps(entry["status"])
