"""Learning from the model at hand: record what LoRAs do, measure what a merge keeps, calibrate, distill."""

from .calibrate import calibrate, moments
from .distill import distill
from .host import Host, Site
from .measured import Retention, best_scale, retention
from .record import record
from .recording import Recording
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
    "moments",
    "record",
    "retention",
]
