"""Opening a diffusers or transformers folder as a model that runs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import LoraFormatError, ParameterError, shown
from ..learning.host import Host
from .hosts import DiffusersHost, TransformersHost


@dataclass(frozen=True, slots=True, eq=False)
class OpenedModel:
    """A pipeline, or a text model and its tokenizer; and the host for learning."""

    host: Host
    pipeline: Any = None
    model: Any = None
    tokenizer: Any = None


def open_model(
    folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> OpenedModel:
    """Open a model folder with stock diffusers or transformers; nothing is downloaded, no code of it is run.

    Raises:
        ParameterError: if the folder holds neither, or the library that reads it is not installed.
        LoraFormatError: if the library cannot read the folder.
    """
    path = Path(folder)
    is_pipeline = (path / "model_index.json").is_file()
    if not is_pipeline and not (path / "config.json").is_file():
        raise ParameterError(
            f"{path.name} is not a model folder: a diffusers folder has a model_index.json, a transformers "
            "folder a config.json"
        )
    try:
        opened = _pipeline(path, dtype, device) if is_pipeline else _text_model(path, dtype, device)
    except ImportError as error:
        extra = "diffusers" if is_pipeline else "text"
        raise ParameterError(f"reading {path.name} needs more: pip install 'lora-alloy[{extra}]'") from error
    except (OSError, ValueError, KeyError) as error:
        raise LoraFormatError(f"{path.name}: the model cannot be opened: {error}") from error
    return opened


def _pipeline(path: Path, dtype: torch.dtype, device: torch.device | None) -> OpenedModel:
    from diffusers import DiffusionPipeline

    factory: Any = DiffusionPipeline
    pipe = factory.from_pretrained(path, torch_dtype=dtype, local_files_only=True)
    if device is not None:
        pipe = pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    return OpenedModel(DiffusersHost(pipe), pipeline=pipe)


def _text_model(path: Path, dtype: torch.dtype, device: torch.device | None) -> OpenedModel:
    import transformers

    library: Any = transformers
    tokenizer = library.AutoTokenizer.from_pretrained(path, local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    names = config.get("architectures") or []
    if not isinstance(names, list):
        raise ValueError(f"architectures is {shown(names)}")
    is_causal = any("CausalLM" in str(name) or "LMHead" in str(name) for name in names)
    factory = library.AutoModelForCausalLM if is_causal else library.AutoModel
    model: nn.Module = factory.from_pretrained(path, local_files_only=True, dtype=dtype).eval()
    model = model if device is None else model.to(device)
    return OpenedModel(TransformersHost(model), model=model, tokenizer=tokenizer)
