"""Learning from the model at hand: record what LoRAs do, measure what a merge keeps, calibrate, distill."""

from typing import TYPE_CHECKING

from ..lazy import import_when_used

if TYPE_CHECKING:
    from .calibrate import calibrate
    from .distill import distill
    from .host import Host, Site
    from .measured import Retention, best_scale, retention
    from .moments import moments
    from .record import record
    from .recording import Recording
    from .stored import load_recording, save_recording
    from .training import DistillProgress

__all__ = [
    "DistillProgress",
    "Host",
    "Recording",
    "Retention",
    "Site",
    "best_scale",
    "calibrate",
    "distill",
    "load_recording",
    "moments",
    "record",
    "retention",
    "save_recording",
]

import_when_used(
    __name__,
    {
        "calibrate": ("calibrate",),
        "distill": ("distill",),
        "host": ("Host", "Site"),
        "measured": ("Retention", "best_scale", "retention"),
        "moments": ("moments",),
        "record": ("record",),
        "recording": ("Recording",),
        "stored": ("load_recording", "save_recording"),
        "training": ("DistillProgress",),
    },
)
