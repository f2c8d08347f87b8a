"""The models that are known: one row each, and every table over models, which is made from the rows.

To add a model, write its row in a file of ``models`` and list it here.
"""

from __future__ import annotations

import re

from .architecture import Architecture, Family, LayerTable
from .models.auraflow import AURAFLOW
from .models.flux import FLUX
from .models.flux2 import FLUX2
from .models.hidream import HIDREAM
from .models.hunyuan import HUNYUAN
from .models.ltx import LTX
from .models.lumina import LUMINA2, ZIMAGE
from .models.pixart import PIXART
from .models.qwen import QWEN
from .models.sd import SD1, SD2, SDXL
from .models.sd3 import SD3
from .models.wan import WAN

# where names or widths fit several rows, the first row counts
ARCHITECTURES: tuple[Architecture, ...] = (
    SD1,
    SD2,
    SDXL,
    SD3,
    FLUX,
    FLUX2,
    AURAFLOW,
    PIXART,
    LUMINA2,
    ZIMAGE,
    QWEN,
    WAN,
    HUNYUAN,
    LTX,
    HIDREAM,
)

BY_NAME = {row.name: row for row in ARCHITECTURES}
TITLES = {row.name: row.title for row in ARCHITECTURES}  # name -> what people call the model
FAMILIES: dict[str, Family] = {family.name: family for row in ARCHITECTURES for family in row.families}
# beginnings of keys in whole checkpoints; the first two are ComfyUI's and the last is that of a CLIP model
CHECKPOINTS = tuple(
    dict.fromkeys((
        "model.diffusion_model.",
        "diffusion_model.",
        "text_model.",
        *(prefix for row in ARCHITECTURES for prefix in row.checkpoint),
    ))
)  # fmt: skip
# component -> the words of its names
WORDS = {
    component: tuple(
        dict.fromkeys(word for row in ARCHITECTURES for word in row.words.get(component, "").split())
    )
    for component in dict.fromkeys(component for row in ARCHITECTURES for component in row.words)
}
# block sequence -> layer of an attention processor -> the layer that it changes
PROCESSORS = {blocks: layers for row in ARCHITECTURES for blocks, layers in row.processors.items()}
# other names of a layer, and what replaces them
ALIASES = tuple((re.compile(pattern), new) for row in ARCHITECTURES for pattern, new in row.aliases)
# ``image_model`` of ComfyUI -> names in diffusers
LAYER_TABLES: dict[str, LayerTable] = {
    image_model: table for row in ARCHITECTURES for image_model, table in row.comfyui.items()
}
SWAPPED = {
    (image_model, layer) for row in ARCHITECTURES for image_model in row.comfyui for layer in row.swapped
}


def _list_block_kinds() -> dict[str, str]:
    """List block sequences with their kind; where rows differ, ``double`` says more than ``blocks``."""
    kinds: dict[str, str] = {}
    for row in ARCHITECTURES:
        for sequence, kind in row.blocks.items():
            if kinds.get(sequence, "blocks") == "blocks":
                kinds[sequence] = kind
    return kinds


def _list_stages() -> dict[str, int]:
    """List words of paths with their place from input to output, counted from 1.

    A word has the last of its places: ``proj_out`` ends models with one and with two sequences of blocks.
    """
    stages: dict[str, int] = {}
    for row in ARCHITECTURES:
        for stage, words in enumerate(row.order, 1):
            for word in words.split():
                stages[word] = max(stage, stages.get(word, 0))
    return stages


BLOCK_KINDS = _list_block_kinds()
STAGES = _list_stages()
