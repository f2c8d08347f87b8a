"""Which method to choose, as docs/quality.md measured it. Needs no ComfyUI."""

from __future__ import annotations

QUICK = "for a quick look"
ONE_SUBJECT = "for LoRAs of one subject"
# method: what for; in the editor's list of methods
RECOMMENDED = {"linear": QUICK, "mean": ONE_SUBJECT, "even": ONE_SUBJECT}
# the same as the start of the methods' tooltip
ADVICE = (
    "How to merge the LoRAs. For a quick look: linear. For LoRAs of one subject: even or mean. For a "
    "merge to keep, and for three LoRAs or more: record the LoRAs and distill them."
)
