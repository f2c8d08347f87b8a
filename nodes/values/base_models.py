"""Base models by the short names that people know. Needs no ComfyUI.

The layers decide: what files and people state counts only where it fits them, or where the layers are of a
model that is not known. Then what is stated tells models apart that have the same layers, as Pony and SDXL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...merge_ops.names.recognise import Guess

# architecture -> the label where nothing more is known
_LABELS = {
    "sd1": "SD 1.5", "sd2": "SD 2", "sdxl": "SDXL", "sd3": "SD 3", "flux": "Flux.1", "flux2": "Flux.2",
    "auraflow": "AuraFlow", "pixart": "PixArt", "lumina2": "Lumina 2", "zimage": "Z-Image",
    "qwen": "Qwen-Image", "wan": "Wan", "hunyuan": "HunyuanVideo", "ltx": "LTX", "hidream": "HiDream",
}  # fmt: skip
# (architecture, width of its attention) -> the label of the one version that has it
_BY_WIDTH = {("wan", 1536): "Wan 2.1", ("wan", 3072): "Wan 2.2", ("sd3", 2432): "SD 3.5"}
# (pattern of a statement without anything but letters and digits, label, its architecture); the first counts
_STATED = tuple(
    (re.compile(pattern), label, architecture)
    for pattern, label, architecture in (
        (r"ponyv7", "Pony V7", "auraflow"),
        (r"auraflow", "AuraFlow", "auraflow"),
        (r"pony", "Pony", "sdxl"),
        (r"noobai", "NoobAI", "sdxl"),
        (r"illustrious", "Illustrious", "sdxl"),
        (r"kolors", "Kolors", "sdxl"),
        (r"^(sdxl|stablediffusionxl)|sdxlbase", "SDXL", "sdxl"),
        (r"^(sd35|stablediffusion35|stablediffusionv35)", "SD 3.5", "sd3"),
        (r"^(sd3|stablediffusion3|stablediffusionv3)", "SD 3", "sd3"),
        (r"^(sdv?2|stablediffusionv?2)", "SD 2", "sd2"),
        (r"^(sdv?1|stablediffusionv?1)", "SD 1.5", "sd1"),
        (r"chroma", "Chroma", "flux"),
        (r"kontext", "Flux.1 Kontext", "flux"),
        (r"^flux2", "Flux.2", "flux2"),
        (r"^flux", "Flux.1", "flux"),
        (r"^zimage", "Z-Image", "zimage"),
        (r"^lumina", "Lumina 2", "lumina2"),
        (r"^qwen(image|edit|$|2$)", "Qwen-Image", "qwen"),
        (r"^wan(video)?22", "Wan 2.2", "wan"),
        (r"^wan(video)?(21|13b|14b)", "Wan 2.1", "wan"),
        (r"^wan", "Wan", "wan"),
        (r"^hunyuanvideo", "HunyuanVideo", "hunyuan"),
        (r"^ltx(v|video)?2", "LTX-2", "ltx"),
        (r"^ltx", "LTX", "ltx"),
        (r"^hidream", "HiDream", "hidream"),
        (r"^pixart", "PixArt", "pixart"),
        (r"^anima(pre|base|$)", "Anima", None),
        (r"^cogvideox", "CogVideoX", None),
        (r"^mochi", "Mochi", None),
        (r"^stablecascade", "Stable Cascade", None),
        (r"^(acestep)", "ACE-Step", None),
    )
)
_GENERIC = frozenset(_LABELS.values())


def name_base(guess: Guess | None, width: int, trusted: Iterable[str], stated: Iterable[str]) -> str | None:
    """Return the base model of a LoRA, None where it is unknown.

    Args:
        guess: what its layers say.
        width: of its attention.
        trusted: what people or Civitai say of this very LoRA.
        stated: what its trainer noted, such as the name of a checkpoint.
    """
    possible = {row.name for row in (guess.architecture, *guess.others)} if guess else set()
    first = _fitting(trusted, possible)
    every = first[:1] or _fitting(stated, possible)
    # a trainer notes "sdxl" for whatever is of that kind, and the checkpoint's name beside it
    best = next((label for label in every if label not in _GENERIC), every[0] if every else None)
    if guess is None or guess.others:
        return best
    plain = _BY_WIDTH.get((guess.name, width), _LABELS.get(guess.name))
    return plain if best is None or best in _GENERIC else best


def label_of(architecture: str) -> str:
    """Return what people call the model."""
    return _LABELS[architecture]


def labels_of(architecture: str) -> list[str]:
    """Return every label that LoRAs of this architecture can have."""
    stated = [label for _, label, of in _STATED if of == architecture]
    by_width = [label for (of, _), label in _BY_WIDTH.items() if of == architecture]
    return list(dict.fromkeys([_LABELS[architecture], *by_width, *stated]))


def _fitting(statements: Iterable[str], possible: set[str]) -> list[str]:
    """The labels of statements that do not contradict the layers."""
    labels = []
    for text in statements:
        written = (text[:300], re.split(r"[\\/]", text[:300])[-1])  # as it is, and without its folder
        plain = [re.sub(r"[^a-z0-9]", "", each.lower()) for each in written]
        for pattern, label, architecture in _STATED:
            if any(map(pattern.search, plain)):
                if not possible or architecture in possible:
                    labels.append(label)
                break
    return labels
