"""Modules of language models: one path for the names that versions of transformers give to one module.

Transformers 4.52 put the language model of a vision-language model under ``model.language_model.``, where it
was ``model.`` or ``language_model.model.`` before, and its vision tower under ``model.``. A class without a
head has one level less. Source: the conversions of checkpoints in transformers 4.52 to 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

# what classes wrap around the same modules
_WRAPPERS = r"(?:(?:base_model|thinker|model|language_model|text_model|llm)\.)*"
_DECODER = re.compile(rf"({_WRAPPERS})((?:layers\.\d+\.|embed_tokens(?:\.|$)|norm$|norm\.bias$).*)")
_HEAD = re.compile(rf"({_WRAPPERS})(lm_head(?:\.|$).*)")
_BESIDE = re.compile(
    r"((?:(?:thinker|model)\.)*)((?:visual|vision_tower|vision_model|vision_encoder|vision_embed_tokens|audio_tower|vit"
    r"|image_tower|video_tower|multi_modal_projector|multimodal_projector|mm_projector|vision_projector|connector|embed_vision"
    r"|embed_audio|image_newline)(?:\.|$).*)"
)
# CLIP and SigLIP vision models lost a level in transformers 5
_TOWER = re.compile(r"((?:model\.)*vision_tower\.(?:vision_model\.)?)((?!vision_model\.).*)")
_PATTERNS = (("decoder", _DECODER), ("head", _HEAD), ("vision_tower", _TOWER), ("", _BESIDE))
# from what current versions of transformers have to what only old ones had
_CURRENT = (
    "model.language_model.", "model.text_model.", "language_model.", "model.", "language_model.model.", "",
)  # fmt: skip
_TOWERS = ("model.vision_tower.", "model.vision_tower.vision_model.", "vision_tower.vision_model.")
# transformers' Conv1D stores its weight as (in, out); these model types use it, in modules of these names
_CONV1D_TYPES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_CONV1D_NAMES = ("c_attn", "c_proj", "c_fc", "q_attn")
_CURRENT_OF = {"decoder": _CURRENT, "head": ("", *_CURRENT), "vision_tower": _TOWERS}


@lru_cache(maxsize=1 << 15)  # the files of one model have the same names
def split_wrappers(name: str) -> tuple[str, str, str] | None:
    """Return ``(part, wrappers, path)`` of a module's name: the path is the same in all versions.

    None for a name that no version changed.
    """
    for part, pattern in _PATTERNS:
        match = pattern.fullmatch(name)
        if match is not None:
            return part or match[2].partition(".")[0], match[1], match[2]
    return None


def current_wrappers(part: str, wrappers: Iterable[str]) -> str:
    """Return those of some wrappers around one part that the newest readers know."""
    order = _CURRENT_OF.get(part, ("model.", ""))
    return min(wrappers, key=lambda each: (order.index(each) if each in order else len(order), each))


def has_conv1d(model_type: str) -> bool:
    """Return True if models of this type in transformers store some weights as ``(in, out)``."""
    return model_type in _CONV1D_TYPES


def is_conv1d(model_type: str, module: str) -> bool:
    """Return True if a module of a model of this type stores its weight as ``(in, out)``."""
    return has_conv1d(model_type) and module.rpartition(".")[2] in _CONV1D_NAMES
