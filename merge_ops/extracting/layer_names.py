"""What the layers of a model are called in a LoRA file that ComfyUI, kohya's scripts and others read."""

from __future__ import annotations

import re

from ..formats.whole_model import ModelWeight, WholeModel
from ..names.spelling import kohya_name
from ..names.unet import LDM_HEADS

_TEXT = ("text_encoder", "text_encoder_2")
# ComfyUI has kohya's names for these modules of CLIP models only
_OF_KOHYA = re.compile(
    r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])(\.bias)?"
)
# width of a CLIP model -> ComfyUI's name for it
_CLIPS = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
_UNKNOWN = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


class NamesInFiles:
    """The names of a model's layers in files: canonical ones, but ComfyUI's own where it knows no other."""

    def __init__(self, model: WholeModel) -> None:
        self._is_language = model.dialect == "peft"
        names = model.weights.keys()
        self._is_single = not any(name.startswith("text_encoder_2.") for name in names)
        # LoRAs of SDXL have the authors' names, and those of UNets with other numbers of blocks only these
        self._ldm = "unet.add_embedding.linear_1" in names or any(map(_is_unusual, names))

    def of(self, name: str, weight: ModelWeight) -> str:
        """Return the name of a layer."""
        component, _, path = name.partition(".")
        if self._is_language or component not in _TEXT or _OF_KOHYA.fullmatch(path):
            return name
        width = weight.shape[-1] if weight.shape else 0
        return f"text_encoders.{_CLIPS.get(width, _UNKNOWN[component])}.transformer.{path}"

    def key(self, name: str, weight: ModelWeight) -> str:
        """Return what the keys of a layer begin with."""
        if self._is_language:
            return weight.key
        if weight.is_bare:
            return name
        if self._ldm and weight.key.startswith(LDM_HEADS):
            return f"lora_unet_{weight.key.replace('.', '_')}"
        return kohya_name(name.removesuffix(".bias"), self._ldm, self._is_single)


def _is_unusual(name: str) -> bool:
    """True for a module that diffusers' UNets with two blocks in each level do not have."""
    path = name.removeprefix("unet.")
    return path != name and (path.startswith(LDM_HEADS) or path.endswith(".op"))
