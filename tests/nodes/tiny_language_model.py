"""A node for ComfyUI's custom_nodes that loads text encoders of any size; CLIPLoader knows only real ones.

The classes are ComfyUI's own, and so is the key of the model options that changes their sizes.
"""

import json

import comfy.sd
import comfy.text_encoders.anima
import comfy.text_encoders.flux
import comfy.text_encoders.hunyuan_video
import comfy.text_encoders.lumina2
import comfy.text_encoders.omnigen2
import comfy.utils
import folder_paths
import torch

_CLASSES = {
    "qwen3": comfy.text_encoders.anima.te,
    "qwen25": comfy.text_encoders.omnigen2.te,
    "gemma2": comfy.text_encoders.lumina2.te,
    "llama": comfy.text_encoders.hunyuan_video.hunyuan_video_clip,
    "t5": comfy.text_encoders.flux.flux_clip,
}


def load(*names):
    """A CLIP from files whose metadata says which class, and the sizes of what is in it."""
    states, sizes, kind = [], {}, ""
    for name in names:
        path = folder_paths.get_full_path_or_raise("text_encoders", name)
        state, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
        states.append(state)
        sizes |= json.loads(metadata["sizes"])
        kind = metadata.get("class", kind)
    target = type("Target", (), {"params": {}, "clip": _CLASSES[kind](), "tokenizer": _tokenizer(kind)})
    return comfy.sd.CLIP(target, state_dict=states, model_options=sizes | {"dtype": torch.float32})


def _tokenizer(kind):
    """Those of the other classes need files that a checkout may lack, and no text of theirs is read."""
    return comfy.text_encoders.anima.AnimaTokenizer if kind == "qwen3" else lambda **_: None


class TinyLanguageModel:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "execute", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {})}}

    def execute(self, name):
        return (load(name),)


NODE_CLASS_MAPPINGS = {"TinyLanguageModel": TinyLanguageModel}
