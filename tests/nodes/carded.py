"""LoRAs with something to tell, in the loras folder of a running ComfyUI."""

import base64
import io
import json
import shutil
from contextlib import contextmanager

from PIL import Image

from tests.nodes.lora_files import write_lora

FOLDER = "carded"
RECIPE = {
    "recipe": 1,
    "version": "0.1.0",
    "method": "ties",
    "space": "delta",
    "rank": 16,
    "params": {"density": 0.3},
    "scale": 1.2,
    "seed": 0,
    "sources": [
        {"name": "style/ink.safetensors", "sha256": "0" * 64, "weight": 0.8},
        {"name": "mia.safetensors", "sha256": "1" * 64, "weight": 0.6, "text_weight": 0.2},
    ],
}
TAGS = {"10_mia": {"mia": 20, "red scarf": 12, "smile": 5}}
MIA = {
    "model_name": "Mia",
    "base_model": "Pony",
    "notes": "Works best at 0.7.",
    "usage_tips": '{"strength":0.7}',
    "modelDescription": "<p>Trained on <b>40</b> photos.</p>",
    "civitai": {"trainedWords": ["mia", "red scarf"], "creator": {"username": "ann"}},
}


def picture(width, height, kind="PNG"):
    """The bytes of a picture with a gradient."""
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


@contextmanager
def carded(base):
    """The folder, until the end of the block."""
    folder = base / "models" / "loras" / FOLDER
    folder.mkdir()
    try:
        _fill(folder)
        yield folder
    finally:
        shutil.rmtree(folder)


def _fill(folder):
    tagged = {
        "ss_tag_frequency": json.dumps(TAGS),
        "ss_dataset_dirs": json.dumps({"10_mia": {"img_count": 20}}),
    }
    write_lora(
        folder / "mia.safetensors", "sdxl", tagged | {"ss_base_model_version": "sdxl_base_v1-0"}, only="attn"
    )
    (folder / "mia.metadata.json").write_text(json.dumps(MIA))
    (folder / "mia.preview.png").write_bytes(picture(300, 500))
    write_lora(folder / "tagged.safetensors", "sd1", tagged, only="attn")
    (folder / "tagged.webp").write_bytes(picture(900, 200, "WEBP"))
    small = base64.b64encode(picture(8, 8)).decode()
    spec = {
        "modelspec.title": "Ink",
        "modelspec.author": "ben",
        "modelspec.license": "CC0-1.0",
        "modelspec.trigger_phrase": "ink drawing, (fine, lines:1.1)",
        "modelspec.description": "Ink on paper.",
        "modelspec.thumbnail": f"data:image/png;base64,{small}",
        "modelspec.architecture": "flux-1-dev/lora",
    }
    write_lora(folder / "style" / "ink, 50% #1.safetensors", "flux", spec, rank=4)
    write_lora(folder / "merged.safetensors", "wan_t2v", {"lora_alloy": json.dumps(RECIPE)})
    (folder / "merged.mp4").write_bytes(b"video")
    (folder / "broken.safetensors").write_bytes(b"<html>")
    (folder / "broken.json").write_bytes(b"{")
    write_lora(folder / "peft" / "adapter_model.safetensors", "sdxl", only="attn2")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8}
    config["base_model_name_or_path"] = "stabilityai/stable-diffusion-xl-base-1.0"
    (folder / "peft" / "adapter_config.json").write_text(json.dumps(config))
