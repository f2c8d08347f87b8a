"""Nodes for custom_nodes that load LoRAs as those of other packs do: in rows, in tags, part by part."""

import re

import comfy.sd
import comfy.utils
import folder_paths


def load(model, clip, name, strength, strength_clip):
    path = folder_paths.get_full_path_or_raise("loras", name)
    state = comfy.utils.load_torch_file(path, safe_load=True)
    return comfy.sd.load_lora_for_models(model, clip, state, strength, strength_clip)


class RowsLoader:
    """One input for each row, with a switch."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("MODEL", "CLIP")

    @classmethod
    def INPUT_TYPES(cls):
        row = ("LORA_ROW", {})
        return {
            "required": {"model": ("MODEL",), "clip": ("CLIP",)},
            "optional": {"lora_1": row, "lora_2": row},
        }

    def load(self, model, clip, **rows):
        for row in rows.values():
            if row["on"]:
                model, clip = load(model, clip, row["lora"], row["strength"], row["strengthTwo"])
        return model, clip


class TagsLoader:
    """A text with tags; the model's layers are loaded first, then those of the text encoder."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("MODEL", "CLIP")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "clip": ("CLIP",), "text": ("STRING", {"multiline": True})}}

    def load(self, model, clip, text):
        for name, strength in re.findall("<lora:([^:>]+):([^>]+)>", text):
            model, _ = load(model, None, f"{name}.safetensors", float(strength), 0)
            _, clip = load(None, clip, f"{name}.safetensors", 0, float(strength))
        return model, clip


NODE_CLASS_MAPPINGS = {"RowsLoader": RowsLoader, "TagsLoader": TagsLoader}
