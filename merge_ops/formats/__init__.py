"""From files to LoRAs: containers, PEFT configurations, and what each module of a file holds."""

from typing import TYPE_CHECKING

from ..lazy import import_when_used

if TYPE_CHECKING:
    from .converted import alike_by_diffusers, load
    from .epochs import load_all
    from .state_dict import from_tensors

__all__ = ["alike_by_diffusers", "from_tensors", "load", "load_all"]

import_when_used(
    __name__,
    {
        "converted": ("alike_by_diffusers", "load"),
        "epochs": ("load_all",),
        "state_dict": ("from_tensors",),
    },
)
