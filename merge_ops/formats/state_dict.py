"""A LoRA from a state dict: the tensors of one file, and the metadata that comes with them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from torch import Tensor

from ..adapters.named import one_adapter
from ..errors import reading
from ..lora import Lora
from ..names.spelling import DOTTED_COMPONENTS, KOHYA_COMPONENTS, canonical_name
from .build import build_lora
from .file_scales import FileScales
from .flux_control import spell_out_control
from .paths import CONFIG_NAME
from .pti import from_pti, is_pti
from .statements import DIFFUSERS_METADATA, statements

_IN_FOLDERS = "base_model.model."
_FLAT = re.compile(r"[^.]*_\d+_[^.]*\.lora")  # a trainer's own prefix, and no dots in the module's name


def from_tensors(
    name: str,
    tensors: dict[str, Tensor],
    metadata: dict[str, str] | None = None,
    file: str | None = None,
    adapter: str | None = None,
) -> Lora:
    """Return the LoRA of a state dict, as a file with these tensors would be read.

    ``name`` is what the LoRA is called, ``file`` what messages call it (``name`` by default). ``adapter``
    chooses among several that the keys name, as in ``x.lora_A.style.weight``.

    Raises:
        LoraFormatError: if the tensors are not those of a LoRA, or no key names the adapter; the message
            begins with ``file``.
    """
    with reading(file or name):
        if is_pti(list(tensors)):
            one_adapter({}, adapter)  # such keys name none
            return from_pti(name, tensors, metadata or {})
        return _from_keys(name, spell_out_control(tensors), metadata or {}, adapter)


def _from_keys(name: str, tensors: dict[str, Tensor], metadata: dict[str, str], adapter: str | None) -> Lora:
    """The LoRA of keys that name modules, with the scales that its metadata state."""
    scales = FileScales(metadata)
    lora = build_lora(name, tensors, canonical_name, scales.scale_of, adapter=adapter)
    warnings = (*lora.warnings, *scales.warnings(lora), *_without_configuration(tensors, metadata))
    return replace(lora, dialect=_dialect(list(tensors)), metadata=metadata, warnings=warnings)


def _without_configuration(tensors: dict[str, Tensor], metadata: dict[str, str]) -> list[str]:
    """A warning for the weights of a PEFT folder that came without the file that has their scale."""
    if not all(key.startswith(_IN_FOLDERS) for key in tensors) or any(
        key.endswith(".alpha") for key in tensors
    ):
        return []
    if DIFFUSERS_METADATA in metadata or any(True for _ in statements(metadata)):
        return []
    return [
        f"the keys are those of a PEFT folder, and {CONFIG_NAME}, which says their scale, is not beside the "
        "file: scale 1 is used, as ComfyUI does; put that file into the same folder"
    ]


def _dialect(keys: list[str]) -> str:
    """The family of spellings that most of the file uses, which decides what ``format='auto'`` writes."""
    counts = Counter(map(_dialect_of, sorted(keys)))
    return counts.most_common(1)[0][0] if counts else "kohya"


def _dialect_of(key: str) -> str:
    if key.startswith(tuple(KOHYA_COMPONENTS)) or _FLAT.match(key):
        return "kohya"
    if key.startswith(("diffusion_model.", "model.diffusion_model.")):
        return "generic"
    if ".lora_A" in key or ".lora_B" in key:
        return "diffusers" if key.startswith(tuple(f"{c}." for c in DOTTED_COMPONENTS)) else "peft-keys"
    return "diffusers-legacy"
