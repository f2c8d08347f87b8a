"""Every layer of every architecture is found in its checkpoint: by each spelling, in each layout."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from merge_ops.formats import from_tensors
from merge_ops.formats.header import Entry
from merge_ops.formats.layer_index import LayerIndex
from merge_ops.formats.shard import Shard
from merge_ops.names.spelling import canonical_name
from tests.architectures import keys
from tests.architectures.configs import COMFYUI

UNETS = ("sd1", "sd2", "sdxl")
# a routing gate, which diffusers has as a parameter that no LoRA changes
NOT_IN_DIFFUSERS = {"hidream": "ff_i.gate"}


def shard_of(shapes, prefix="", component=""):
    """A file of these modules, without data."""
    entries = []
    for name, shape in shapes.items():
        entries.append(Entry(f"{prefix}{name}.weight", "F16", shape, 0, 0))
        entries.append(Entry(f"{prefix}{name}.bias", "F16", shape[:1], 0, 0))
    return Shard(Path("model.safetensors"), b"", tuple(entries), {}, component)


def layouts(architecture):
    """The same model as ComfyUI's checkpoints, as bare files of both layouts, and as a diffusers folder."""
    own, theirs = (keys.shapes(architecture, source) for source in ("comfyui", "diffusers"))
    component = "unet" if architecture in UNETS else "transformer"
    yield "comfyui", shard_of(own, "model.diffusion_model.")
    yield "comfyui", shard_of(own)
    yield "diffusers", shard_of(theirs)
    yield "diffusers", shard_of(theirs, component=component)


def lora_of(stems, spelling):
    tensors = {}
    for stem in stems:
        tensors |= {f"{stem}{spelling.up}": torch.zeros(1, 1), f"{stem}{spelling.down}": torch.ones(1, 1)}
        if spelling.alpha:
            tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    return from_tensors("lora", tensors)


def place(span):
    """The tensor without its prefix, and the rows."""
    name = span.entry.name.removeprefix("model.diffusion_model.")
    return name.rpartition(".")[0], span.rows, span.swapped


@pytest.mark.parametrize("architecture", COMFYUI)
def test_each_spelling_finds_each_layer(architecture):
    """As many rows as the layer has, of its weight and of its bias."""
    for source, shard in layouts(architecture):
        index = LayerIndex([shard])
        for spelling in keys.spellings(architecture):
            stems = keys.stems(architecture, spelling)
            lora = lora_of(stems, spelling)
            assert len(lora.layers) == len(stems)
            for name, layer in lora.layers.items():
                module, shape = stems[layer.key]
                if source == "diffusers" and module.endswith(NOT_IN_DIFFUSERS.get(architecture, "-")):
                    continue
                for end in ("", ".bias"):
                    spans = index.find(name + end, layer.key)
                    assert spans, (spelling.label, source, name + end)
                    assert sum(span.shape[0] for span in spans) == shape[0], (spelling.label, name + end)


@pytest.mark.parametrize("architecture", COMFYUI)
def test_all_spellings_of_a_layer_find_the_same_rows(architecture):
    """Of one structure: what differs is dots and prefixes only."""
    for _, shard in layouts(architecture):
        index, found = LayerIndex([shard]), {}
        for spelling in keys.spellings(architecture):
            stems = keys.stems(architecture, spelling)
            for name, layer in lora_of(stems, spelling).layers.items():
                rows = [place(span) for span in index.find(name, layer.key)]
                module = spelling.source, stems[layer.key][0]
                assert found.setdefault(module, rows) == rows, (spelling.label, name)


@pytest.mark.parametrize("architecture", COMFYUI)
def test_every_row_of_a_checkpoint_is_in_one_layer(architecture):
    """The layers of the other structure cover a checkpoint without gaps and without overlap."""
    for source, shard in layouts(architecture):
        other = "diffusers" if source == "comfyui" else "comfyui"
        index, covered = LayerIndex([shard]), {}
        for name in keys.shapes(architecture, other):
            for span in index.find(canonical_name(f"diffusion_model.{name}")):
                start, length = span.rows or (0, span.entry.shape[0])
                covered.setdefault(span.entry.name, []).append((start, start + length))
        for name, rows in covered.items():
            edges = sorted(rows)
            height = next(e.shape[0] for e in shard.entries if e.name == name)
            assert (edges[0][0], edges[-1][1]) == (0, height), name
            assert all(a[1] == b[0] for a, b in pairwise(edges)), name
        missing = {e.name for e in shard.entries if e.name.endswith(".weight")} - covered.keys()
        ignored = NOT_IN_DIFFUSERS.get(architecture, "-")
        assert all(ignored in name for name in missing), sorted(missing)[:5]


def test_a_small_unet_has_its_own_blocks():
    """With one residual block per level, as KOALA has: by diffusers' names and by those of the file."""
    shapes = {f"input_blocks.{i}.0.in_layers.2": (8, 8, 3, 3) for i in (1, 3, 5)}
    shapes |= {f"input_blocks.{i}.0.op": (8, 8, 3, 3) for i in (2, 4)} | {"input_blocks.0.0": (8, 4, 3, 3)}
    shapes |= {f"output_blocks.{i}.0.in_layers.2": (8, 8, 3, 3) for i in range(6)}
    index = LayerIndex([shard_of(shapes, "model.diffusion_model.")])
    for layer, tensor in {
        "unet.down_blocks.1.resnets.0.conv1": "input_blocks.3.0.in_layers.2",
        "unet.down_blocks.1.downsamplers.0.conv": "input_blocks.4.0.op",
        "unet.up_blocks.1.resnets.1.conv1": "output_blocks.3.0.in_layers.2",
    }.items():
        (span,) = index.find(layer)
        assert place(span)[0] == tensor
    stem = "lora_unet_output_blocks_3_0_in_layers_2"
    spelling = keys.Spelling("", "", str, ".lora_down.weight", ".lora_up.weight")
    ((name, layer),) = lora_of([stem], spelling).layers.items()
    (span,) = index.find(name, layer.key)
    assert place(span)[0] == "output_blocks.3.0.in_layers.2"


@pytest.mark.parametrize(
    ("encoders", "found"),
    [
        (["clip_l"], {"text_encoder": "clip_l"}),
        (["clip_g"], {"text_encoder": "clip_g"}),
        (["clip_l", "clip_g", "t5xxl"], {
            "text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl",
        }),
        (["clip_l", "t5xxl"], {
            "text_encoder": "clip_l", "text_encoder_2": "t5xxl", "text_encoder_3": "t5xxl",
        }),
        (["t5xxl"], {"text_encoder": "t5xxl"}),
    ],
)  # fmt: skip
def test_text_encoders_of_comfyui(encoders, found):
    """Which one ``lora_te1`` and the others mean depends on which there are."""
    inside = {
        "clip_l": "text_model.encoder.layers.0.self_attn.q_proj",
        "clip_g": "text_model.encoder.layers.0.self_attn.q_proj",
        "t5xxl": "encoder.block.0.layer.0.SelfAttention.q",
    }
    shapes = {f"text_encoders.{name}.transformer.{inside[name]}": (4, 4) for name in encoders}
    index = LayerIndex([shard_of(shapes)])
    for number in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        spans = {name: index.find(f"{number}.{path}") for name, path in inside.items()}
        names = {span.entry.name.split(".")[1] for each in spans.values() for span in each}
        assert names == ({found[number]} if number in found else set()), number
    for name in shapes:
        assert [span.entry.name for span in index.find(name)] == [f"{name}.weight"]
