"""What ComfyUI registers, through ``comfy_entrypoint`` of the pack."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply import LoraAlloyApply
from .distill import LoraAlloyDistill
from .extract import LoraAlloyExtract
from .grid import LoraAlloyGrid
from .inspect import LoraAlloyInspect
from .loader import LoraAlloyLoader
from .measure import LoraAlloyMeasure
from .merge import LoraAlloyMerge
from .merge_loaded import LoraAlloyMergeLoaded
from .method import LoraAlloyMethod
from .model.queued import watch_queue
from .recipe import LoraAlloyRecipe
from .record import LoraAlloyRecord
from .routes import add_routes
from .save import LoraAlloySave
from .stack import LoraAlloyStack
from .sweep import LoraAlloySweep


class LoraAlloyExtension(ComfyExtension):
    """All nodes of the pack."""

    async def on_load(self) -> None:
        """Add the requests of the pack to the server, and see what is queued."""
        add_routes()
        watch_queue()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """What ComfyUI registers."""
        return [
            LoraAlloyLoader,
            LoraAlloyStack,
            LoraAlloyMethod,
            LoraAlloyMerge,
            LoraAlloyMergeLoaded,
            LoraAlloyApply,
            LoraAlloySave,
            LoraAlloyInspect,
            LoraAlloyRecipe,
            LoraAlloySweep,
            LoraAlloyGrid,
            LoraAlloyRecord,
            LoraAlloyMeasure,
            LoraAlloyDistill,
            LoraAlloyExtract,
        ]
