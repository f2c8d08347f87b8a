"""Run by ComfyUI's interpreter, or imported by its checks: its real models without weights.

python comfyui_models.py     (in ComfyUI's folder; prints the modules of all architectures as JSON)
"""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()

import comfy.supported_models
from configs import COMFYUI

PREFIX = "diffusion_model."


def empty_model(architecture, **changes):
    """ComfyUI's model at its real size on the meta device; ``changes`` to its configuration."""
    _, name, config = COMFYUI[architecture]
    return getattr(comfy.supported_models, name)(config | changes).get_model({}, "", "meta")


def modules(model):
    """Every weight that a LoRA can change, without the prefix."""
    return {
        key.removeprefix(PREFIX).removesuffix(".weight"): tuple(weight.shape)
        for key, weight in model.state_dict().items()
        if key.startswith(PREFIX) and key.endswith(".weight") and weight.ndim > 1
    }


if __name__ == "__main__":
    print(json.dumps({name: modules(empty_model(name)) for name in COMFYUI}))  # noqa: T201
