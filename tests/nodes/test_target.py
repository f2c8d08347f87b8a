"""Targets as records: ComfyUI's forms and back, equality, shapes, and slices along another dimension."""

import pytest
import torch

from tests.nodes.pack import pack_module

target = pack_module("nodes.model.target")
fused = pack_module("nodes.model.places.fused")
merge_ops = pack_module("merge_ops")
Target, Part = target.Target, target.Part
KEY = "diffusion_model.blocks.0.qkv.weight"
SHAPES = {KEY: (12, 5, 3)}


def flip(weight):
    """Any function that moves rows."""
    return weight.flip(0)


FORMS = (KEY, (KEY, (0, 4, 4)), (KEY, (1, 2, 3)), (KEY, None, flip), (KEY, (0, 4, 4), flip))


@pytest.mark.parametrize("form", FORMS)
def test_comfyui_s_forms(form):
    """What is read from the key maps is what patches are added with, and has the shape of what is cut."""
    read = Target.from_comfyui(form)
    assert read.to_comfyui() == form
    part = torch.empty(SHAPES[KEY])
    assert read.shape(SHAPES) == (part if read.part is None else part.narrow(*read.part)).shape


def test_equality():
    """As of ComfyUI's forms: by value, functions by identity."""
    assert len({Target.from_comfyui(form) for form in (*FORMS, *FORMS)}) == len(FORMS)
    assert Target(KEY, None, flip) != Target(KEY, None, lambda weight: weight.flip(0))


def test_rows():
    """Only slices of whole rows in order have a first and a last row."""
    rows = [Target.from_comfyui(form).rows(SHAPES) for form in FORMS]
    assert rows == [(0, 12), (4, 8), None, None, None]


def test_bias_and_weight():
    """The bias has the same part, and leads back to its weight."""
    piece = Target(KEY, Part(0, 4, 4))
    assert piece.bias == Target(KEY.replace(".weight", ".bias"), Part(0, 4, 4))
    assert piece.bias.weight == piece == piece.weight


def test_columns_are_left_alone():
    """A slice along another dimension is neither cut nor a reason to cut others."""
    layers = {"whole": merge_ops.LowRank(torch.ones(12, 2), torch.ones(2, 15))}
    whole = target.LoraTargets(merge_ops.Lora("whole", layers), {"whole": Target(KEY)}, {})
    layers = {"columns": merge_ops.LowRank(torch.ones(12, 2), torch.ones(2, 9))}
    columns = target.LoraTargets(
        merge_ops.Lora("columns", layers), {"columns": Target(KEY, Part(1, 2, 3))}, {}
    )
    key_map = {"columns": Target(KEY, Part(1, 2, 3))}
    slices, apart = fused.find_smallest_slices([whole, columns], key_map, SHAPES)
    assert not slices and not apart
    assert fused.cut_into_slices(columns, slices, SHAPES).lora.layers == columns.lora.layers
