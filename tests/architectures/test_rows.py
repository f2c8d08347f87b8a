"""The rows of the architectures: complete, true to the real models, and all that a new model needs."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from merge_ops.blocks.order import block_of, in_model_order
from merge_ops.names.architecture import Architecture
from merge_ops.names.architectures import ARCHITECTURES, FAMILIES, STAGES
from tests.architectures import keys
from tests.architectures.configs import COMFYUI
from tests.conftest import ROOT

OPTIONAL = {"processors", "swapped", "experts", "aliases"}  # only few models have them
NORMS = {"conv_norm_out"}  # a last layer without a matrix, so that no list has it
MODELS = {"wan": ("wan_t2v", "wan_i2v"), "flux": ("flux", "chroma")}  # row -> key lists, if not its name

rows = pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.name)
sources = pytest.mark.parametrize("source", ["comfyui", "diffusers"])


@rows
def test_a_row_is_complete(row):
    """Every field has a value, or a reason why it has none."""
    fields = set(Architecture.__dataclass_fields__) - OPTIONAL - {"lacks"}
    empty = {name for name in fields if not getattr(row, name)}
    reasons = dict(row.lacks)
    if "patterns" in empty and row.families:  # the names of the families say enough
        reasons.setdefault("patterns", "")
        assert all(family.patterns for family in row.families)
    if not row.families:  # then it shares no names
        assert row.patterns
        empty.discard("families")
    assert empty == reasons.keys()
    assert all(len(reason.split()) > 3 for reason in row.lacks.values())


@rows
def test_a_row_is_true_to_the_model(row):
    """Each list of the real model has the words of the order and the names of the block sequences."""
    names = [
        name
        for model in MODELS.get(row.name, (row.name,))
        for source in ("comfyui", "diffusers")
        for name in keys.shapes(model, source)
    ]
    words = {name.partition(".")[0] for name in names} | NORMS
    assert {word for entry in row.order for word in entry.split()} <= words
    assert row.blocks.keys() <= words


def test_rows_agree_with_each_other():
    """Names are unique, a family has one last resort, and what rows say of one name is the same."""
    assert len({row.name for row in ARCHITECTURES}) == len({row.title for row in ARCHITECTURES})
    assert len({row.name for row in ARCHITECTURES}) == len(ARCHITECTURES)
    assert {name for row in MODELS.values() for name in row} <= COMFYUI.keys()
    for family in FAMILIES.values():
        members = [row.families[family] for row in ARCHITECTURES if family in row.families]
        assert len(members) > 1 and members.count(None) <= 1, family.name
        assert set(family.settles) <= FAMILIES.keys()
    tables, kinds = {}, {}
    for row in ARCHITECTURES:
        for image_model, table in row.comfyui.items():
            assert tables.setdefault(image_model, table) == table, image_model
        for sequence, kind in row.blocks.items():
            if kind != "blocks":
                assert kinds.setdefault(sequence, kind) == kind, sequence


@sources
@pytest.mark.parametrize("model", COMFYUI)
def test_blocks_come_in_the_order_of_the_model(model, source):
    """Embedders first, then the blocks by sequence and number, then the last layers."""
    component = "unet" if model in ("sd1", "sd2", "sdxl") else "transformer"
    source = "diffusers" if component == "unet" else source  # as they are read
    blocks = in_model_order(block_of(f"{component}.{name}") for name in keys.shapes(model, source))
    stages = [STAGES.get(block.split(".")[1], 0) for block in blocks]
    assert stages == sorted(stages) and len(set(stages)) > 1
    row = next(row for row in ARCHITECTURES if model in MODELS.get(row.name, (row.name,)))
    places = [
        next((i for i, words in enumerate(row.order) if b.split(".")[1] in words.split()), -1) for b in blocks
    ]
    assert places == sorted(places)


def test_the_order_of_a_language_model_is_its_own():
    """A sequence of the same name in a denoiser does not move its last norm to the front."""
    blocks = in_model_order(["model.norm", "model.layers.10", "model.layers.9", "model.embed_tokens"])
    assert blocks == ["model.embed_tokens", "model.layers.9", "model.layers.10", "model.norm"]


@sources
@pytest.mark.parametrize("model", COMFYUI)
def test_a_whole_checkpoint_is_refused(model, source, tmp_path):
    """Named as what it is, under the names of both structures."""
    file = tmp_path / "model.safetensors"
    save_file({f"{name}.weight": torch.zeros(1, 1) for name in keys.shapes(model, source)}, file)
    with pytest.raises(merge_ops.LoraFormatError, match="whole weights of a model"):
        merge_ops.load(file)


NEW_ROW = """
from ..architecture import Architecture
from ..families import JOINT

THIMBLE = Architecture(
    name="thimble",
    title="Thimble 1",
    patterns={"original": r"stitches_\\d+_"},
    families={JOINT: lambda evidence: evidence.attention_width == 20},
    blocks={"seams": "single", "stitches": "double"},
    order=("stitches", "seams", "needle"),
    words={"transformer": "stitches seams attn q"},
    converter=None,
    comfyui={"thimble": (("stitches.#.", "transformer_blocks.#.", {"attn.q": ("attn.to_q",)}),)},
    checkpoint=("stitches.",),
    lacks={"converter": "diffusers does not know this model"},
)
"""
USES = """
import sys
import torch
from safetensors.torch import save_file
import merge_ops
from merge_ops.blocks.names import facts_of
from merge_ops.blocks.order import in_model_order
from merge_ops.names.original import diffusers_names
from merge_ops.names.recognise import guess
from merge_ops.names.spelling import canonical_name

def lora(module):
    file = f"{sys.argv[1]}/{module}.safetensors"
    up, down = torch.ones(20, 2), torch.ones(2, 20)
    save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, file)
    return merge_ops.load(file)

for module, structure in (("stitches.1.attn.q", "original"), ("transformer_blocks.1.attn.to_q", "diffusers")):
    found = guess(lora(f"transformer.{module}"))
    assert (found.name, found.title, found.structure) == ("thimble", "Thimble 1", structure), found
assert facts_of("transformer.seams.3.attn.q").items() >= {"blocks": 3, "single": 3, "attn": None}.items()
assert facts_of("transformer.stitches.4.attn.q")["double"] == 4
blocks = [f"transformer.{name}" for name in ("cloth", "stitches.9", "stitches.10", "seams.0", "needle")]
assert in_model_order(reversed(blocks)) == blocks
assert canonical_name("lora_transformer_seams_3_attn_q") == "transformer.seams.3.attn.q"
assert diffusers_names("thimble", "stitches.3.attn.q") == ("transformer_blocks.3.attn.to_q",)
save_file({"stitches.0.attn.q.weight": torch.ones(2, 2)}, f"{sys.argv[1]}/model.safetensors")
for file, architecture, message in (
    ("model", None, "whole weights of a model"),
    ("transformer.stitches.1.attn.q", "thimble", "no converter for the original names of Thimble 1"),
    ("model", "thimbel", "did you mean 'thimble'"),
):
    try:
        merge_ops.load(f"{sys.argv[1]}/{file}.safetensors", architecture)
    except merge_ops.MergeError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
"""


def test_adding_an_architecture_is_one_row(tmp_path):
    """In a copy of the library: a file with the row and its line in the list, and every table knows it."""
    package = tmp_path / "merge_ops"
    shutil.copytree(ROOT / "merge_ops", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "names" / "models" / "thimble.py").write_text(NEW_ROW, encoding="utf-8")
    listing = package / "names" / "architectures.py"
    text = listing.read_text(encoding="utf-8")
    text = text.replace("from .models.wan", "from .models.thimble import THIMBLE\nfrom .models.wan")
    listing.write_text(text.replace("    HIDREAM,\n)", "    HIDREAM,\n    THIMBLE,\n)"), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", USES, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
