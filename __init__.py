"""LoRA Alloy as a ComfyUI node pack: this folder goes into ``custom_nodes``.

Nothing is imported until ComfyUI asks for the nodes, so the folder can also be a plain checkout of the
library.
"""

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """What ComfyUI calls to get the extension."""
    from .nodes.extension import LoraAlloyExtension

    return LoraAlloyExtension()
