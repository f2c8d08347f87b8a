"""PEFT's adapter folders: a configuration and one file of weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..adapters.module import RawModule
from ..adapters.reading import rank_in_tensors
from ..errors import LoraFormatError, reading
from ..lora import BaseDependent, Layer, Lora
from ..names.prefixes import with_clean_patterns
from ..names.spelling import canonical_name
from .adalora import TYPE, adalora_scale, plain_config
from .build import build_lora
from .container import read_container
from .lookalike import PICKLE
from .other_tools import MLX
from .paths import CONFIG_NAME, PICKLED_NAME, WEIGHTS_NAME
from .peft_config import read_config, scale_from_config
from .warned import warnings_of_config
from .written import Written

_COMPONENT_OF_CLASS = {
    "UNet2DConditionModel": "unet",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
}


def read_peft_folder(
    folder: Path,
    file: Path,
    allow_pickle: bool,
    adapter: str | None = None,
    written: Written | None = None,
) -> Lora:
    """Return the LoRA of a PEFT folder whose weights lie in ``file``.

    ``written`` is what the file must hold, where it was just written.

    Raises:
        LoraFormatError: if the folder is incomplete, or of a kind that is not merged.
    """
    config = read_config(folder / CONFIG_NAME)
    with reading(f"{folder.name}/{CONFIG_NAME}"):
        config = with_clean_patterns(plain_config(config))
    if not file.is_file():
        if (folder / PICKLED_NAME).is_file():
            with reading(f"{folder.name}/{PICKLED_NAME}"):
                raise LoraFormatError(PICKLE)
        with reading(folder.name):
            if (folder / "adapters.safetensors").is_file():
                raise LoraFormatError(MLX)
            raise LoraFormatError(f"the folder has no {WEIGHTS_NAME}; give a PEFT adapter folder")
    tensors, metadata = read_container(file, allow_pickle, written)
    base_class = (config.get("auto_mapping") or {}).get("base_model_class", "")
    component = _COMPONENT_OF_CLASS.get(str(base_class))

    def name_of(stem: str) -> str:
        path = stem.removeprefix("base_model.model.")
        return canonical_name(f"{component}.{path}" if component else path)

    def scale_of(module: RawModule) -> float | None:
        path = module.stem.removeprefix("base_model.model.")
        is_scaled, rank = rank_in_tensors(module)
        if config.get("peft_type") == TYPE and is_scaled and rank:
            return adalora_scale(config, module, rank)
        return scale_from_config(config, path, rank) if is_scaled else None

    with reading(folder.name):
        lora = build_lora(folder.name, tensors, name_of, scale_of, config, adapter)
        adapters: list[Layer | BaseDependent] = [*lora.layers.values(), *lora.base_dependent.values()]
        ranks = {each.key.removeprefix("base_model.model."): each.configured_rank for each in adapters}
        warnings = (*lora.warnings, *warnings_of_config(config, ranks))
    return replace(lora, dialect="peft", metadata=metadata, config=config, warnings=warnings)
