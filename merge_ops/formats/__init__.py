"""From files to LoRAs: containers, PEFT configurations, and what each module of a file holds."""

from .converted import alike_by_diffusers, load
from .epochs import load_all
from .state_dict import from_tensors

__all__ = ["alike_by_diffusers", "from_tensors", "load", "load_all"]
