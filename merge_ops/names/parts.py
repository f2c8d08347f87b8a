"""Which part of a pipeline a layer belongs to: the denoiser, a text encoder, or a language model."""

from __future__ import annotations

import re

DENOISERS = ("unet", "transformer", "diffusion_model")  # three names of one part
OTHER_DENOISERS = ("transformer_2", "transformer_ref", "prior")  # beside it, as models of their own
# as PEFT names the modules of decoders, T5 and GPT-2; a bare "layers.0." is also one of ACE-Step's denoiser
_LANGUAGE_MODEL = re.compile(
    r"(base_model\.model\.)?((model\.|language_model\.)+(layers\.\d+\.|embed_tokens$|norm$|lm_head$)"
    r"|(en|de)coder\.block\.\d+\.layer\.|transformer\.(h\.\d+\.|wte$|wpe$)|(embed_tokens|lm_head|shared)$)"
)


def flat_name(name: str) -> str:
    """Return a layer's name without dots and without the denoiser's component: one for all spellings."""
    component, _, path = name.partition(".")
    return (path if component in DENOISERS else name).replace(".", "_")


def flat_path(name: str) -> str:
    """Return a layer's name without dots and without any denoiser's component: what models are told by."""
    component, _, path = name.partition(".")
    return (path if component in DENOISERS or component in OTHER_DENOISERS else name).replace(".", "_")


def is_language_model(name: str) -> bool:
    """Return True for a layer of a language model by itself, without a component of a pipeline in front."""
    return _LANGUAGE_MODEL.match(name.removesuffix(".bias")) is not None


def is_text(name: str) -> bool:
    """Return True for a layer of a text encoder or a language model: ``text_weights`` apply to it."""
    return name.startswith("text_encoder") or is_language_model(name)
