"""What a written file says about itself, and that the same merge always gives the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import merge_ops

SHAPES = {"lora_unet_mid_block_attentions_0_proj_in": (24, 20), "lora_unet_conv_in": (16, 4, 3, 3)}
FILES = {"kohya": "k.safetensors", "diffusers": "d.safetensors", "peft": "p"}

SAVE_ALL = """
import json, sys, merge_ops
a, b, out, files = sys.argv[1:]
merged = merge_ops.merge([merge_ops.load(a), merge_ops.load(b)], [0.7, 0.3], "dare_ties", rank=3)
for form, name in json.loads(files).items():
    merge_ops.save(merged, f"{out}/{name}", format=form)
"""


@pytest.fixture
def loras(write, kohya_tensors):
    said = {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"}
    notes = [said | {"ss_v2": "False", "sshs_model_hash": "1"}, said | {"ss_v2": "True"}]
    return [
        merge_ops.load(write(kohya_tensors(SHAPES, (4,), 2.0, seed), note, f"{name}.safetensors"))
        for seed, (name, note) in enumerate(zip("ab", notes, strict=True))
    ]


@pytest.fixture
def merged(loras):
    return merge_ops.merge(loras, [0.7, 0.3], "ties", density=0.4, rank=3, scale=1.5, seed=8)


@pytest.fixture
def folder(tmp_path):
    """An empty folder to save into."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.slow
def test_same_inputs_give_the_same_bytes(loras, folder):
    """In two processes with differently seeded hashes, for every format."""
    sources = [str(lora.path) for lora in loras]
    found = []
    for turn in ("1", "2"):
        (folder / turn).mkdir()
        environment = os.environ | {
            "PYTHONHASHSEED": turn,
            "PYTHONPATH": str(Path(merge_ops.__file__).parents[1]),
        }
        command = [sys.executable, "-c", SAVE_ALL, *sources, str(folder / turn), json.dumps(FILES)]
        subprocess.run(command, check=True, env=environment, timeout=600)
        written = sorted(path for path in (folder / turn).rglob("*") if path.is_file())
        found.append({path.name: path.read_bytes() for path in written})
    assert len(found[0]) == 4
    assert found[0] == found[1]


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
def test_metadata_holds_the_recipe_and_no_path(form, merged, loras, folder, tmp_path):
    path = folder / ("x" if form == "peft" else "x.safetensors")
    merge_ops.save(merged, path, format=form)
    file = path / "adapter_model.safetensors" if form == "peft" else path
    metadata = metadata_of(file)
    recipe = json.loads(metadata["lora_alloy"])
    assert recipe["sources"] == [
        {"name": lora.name, "sha256": lora.sha256, "weight": weight}
        for lora, weight in zip(loras, (0.7, 0.3), strict=True)
    ]
    assert {len(source["sha256"]) for source in recipe["sources"]} == {64}
    assert (recipe["method"], recipe["space"], recipe["rank"]) == ("ties", "delta", 3)
    assert (recipe["params"]["density"], recipe["scale"], recipe["seed"]) == (0.4, 1.5, 8)
    assert metadata["format"] == "pt"
    assert metadata["modelspec.title"] == "x"
    assert metadata["modelspec.merged_from"] == "a, b"
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert "ss_v2" not in metadata  # the sources disagree
    assert metadata.get("sshs_model_hash") != "1"  # it no longer holds
    assert str(tmp_path).encode() not in file.read_bytes()


def test_kohya_files_say_alpha_and_dimension(loras, folder):
    merge_ops.save(merge_ops.merge(loras, rank=3), folder / "x.safetensors")
    metadata = metadata_of(folder / "x.safetensors")
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "3")
    alphas = {k: float(v) for k, v in load_file(folder / "x.safetensors").items() if k.endswith(".alpha")}
    assert alphas == {f"{stem}.alpha": 3.0 for stem in SHAPES}


def test_mixed_ranks_share_one_alpha_in_kohya_files(loras, folder):
    """Diffusers reads only the most common alpha of attention layers rightly, so there is only one."""
    loras[1].layers.pop("unet.conv_in")
    merge_ops.save(merge_ops.merge(loras), folder / "x.safetensors", dtype=torch.float32)
    tensors = load_file(folder / "x.safetensors")
    assert len({float(value) for key, value in tensors.items() if key.endswith(".alpha")}) == 1
    assert {value.shape[0] for key, value in tensors.items() if key.endswith("down.weight")} == {4, 8}
    assert metadata_of(folder / "x.safetensors")["ss_network_dim"] == "Dynamic"
