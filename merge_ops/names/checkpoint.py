"""What tensors of a checkpoint are called: which part of a pipeline they are in, and their layers' names."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from .parts import DENOISERS, OTHER_DENOISERS, flat_name
from .prefixes import strip_wrappers
from .spelling import canonical_name

DENOISER = "diffusion_model"
_CHECKPOINT = "model.diffusion_model."
# what single files put in front of a part
_DENOISER_PREFIXES = (_CHECKPOINT, "diffusion_model.", "unet.", "transformer.", "net.")
_ENCODER_PREFIXES = {
    "cond_stage_model.transformer.": "text_encoder",
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.0.model.": "text_encoder",
    "conditioner.embedders.1.transformer.": "text_encoder_2",
    "conditioner.embedders.1.model.": "text_encoder_2",
}
_COMFYUI_ENCODER = re.compile(r"text_encoders\.([^.]+)\.transformer\.")
# ComfyUI's own names of CLIP models -> what LoRAs call them
_CLIPS = {
    "clip_l": ("text_encoder",),
    "clip_h": ("text_encoder",),
    "clip_g": ("text_encoder_2", "text_encoder"),
}
UNNAMED = "a part of the text encoder that no LoRA has a name for"
# prefix of what no LoRA changes -> what it is
_OTHERS = {
    "first_stage_model.": "the VAE",
    "vae.": "the VAE",
    "model_ema.": "the EMA weights",
    "control_model.": "a control model",
    "cond_stage_model.": UNNAMED,
    "conditioner.": UNNAMED,
}
BUFFERS = "buffers"
# those of the schedule and of samplers, which are no weights
_BUFFERS = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "log_one_minus_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
    "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
    "logvar", "denoiser.sigmas", "ztsnr", "v_pred", "edm_vpred.sigma_max", "edm_vpred.sigma_min",
)  # fmt: skip
_BUFFER_ENDS = ("position_ids", "logit_scale", "inv_freq", "attn_mask", "num_batches_tracked")
_LDM = re.compile(r"(?:^|_)((?:input_blocks|middle_block|output_blocks)_.+)")


@dataclass(frozen=True, slots=True)
class TensorName:
    """Which parts of a pipeline a tensor is in, as LoRAs call them, and its name there.

    ``is_open_clip`` says that the part has the names of OpenCLIP.
    """

    parts: tuple[str, ...]
    path: str
    is_open_clip: bool = False


class Parts:
    """The parts of a pipeline that the names of a checkpoint's tensors tell."""

    def __init__(self, names: Collection[str]) -> None:
        self._encoders = _encoders_of(names)

    def name(self, component: str, name: str) -> TensorName | None:
        """Return the parts of a tensor and its name there; None for a part that no LoRA changes.

        ``component`` is the folder of a pipeline that it is in, or nothing.
        """
        name = strip_wrappers(name)
        if component:
            return TensorName((DENOISER if component in DENOISERS else component,), name)
        if (stated := self.stated(name)) is not None:
            return stated
        if other_part(name) is not None:
            return None
        for prefix in _DENOISER_PREFIXES:
            if name.startswith(prefix):
                return TensorName((DENOISER,), name.removeprefix(prefix))
        part, _, path = canonical_name(name).partition(".")
        return TensorName((part,), path) if part == "text_encoder" else TensorName((DENOISER,), name)

    def stated(self, name: str) -> TensorName | None:
        """Return the parts of a tensor where the prefix of a single file tells them; None for any other."""
        for prefix, part in _ENCODER_PREFIXES.items():
            if name.startswith(prefix):
                is_open_clip = prefix.endswith(".model.")
                return TensorName((part,), name.removeprefix(prefix), is_open_clip)
        if (match := _COMFYUI_ENCODER.match(name)) is not None:
            return TensorName(self._encoders[match[1]], name[match.end() :])
        if name.startswith(_CHECKPOINT):
            return TensorName((DENOISER,), name.removeprefix(_CHECKPOINT))
        return None


def is_buffer(name: str) -> bool:
    """Return True for a tensor that is no weight of any part: of a schedule, a sampler, or positions."""
    return name in _BUFFERS or name.rpartition(".")[2] in _BUFFER_ENDS


def other_part(name: str) -> str | None:
    """Return what a tensor is that no LoRA changes, in words; None for any other.

    ``name`` is that in a single file, of no part that ``Parts.stated`` knows.
    """
    return next((what for prefix, what in _OTHERS.items() if name.startswith(prefix)), None)


def has_comfyui_name(name: str) -> bool:
    """Return True for a text encoder of a file of ComfyUI that its LoRAs call as the file does: not CLIP."""
    match = _COMFYUI_ENCODER.match(name)
    return match is not None and match[1] not in _CLIPS


def _encoders_of(names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """ComfyUI's name of a text encoder -> what LoRAs call it, which depends on the others.

    T5 is the second beside CLIP-L alone, where OneTrainer calls it the third, and the last in any case.
    """
    own = {match[1] for name in names if (match := _COMFYUI_ENCODER.match(name)) is not None}
    clips = sum(name in own for name in ("clip_l", "clip_g"))
    known = {
        "clip_l": ("text_encoder",),
        "clip_h": ("text_encoder",),
        "clip_g": ("text_encoder_2" if "clip_l" in own else "text_encoder",),
        "t5xxl": (
            ("text_encoder_2", "text_encoder_3") if own & {"clip_l", "clip_g"} == {"clip_l"}
            else ("text_encoder" if not clips else f"text_encoder_{clips + 1}",)
        ),
    }  # fmt: skip
    alone = ("text_encoder",) if len(own) == 1 else ()
    return {name: known.get(name, alone) for name in own}


def denoiser_key(name: str) -> str:
    """Return what ComfyUI calls a tensor of a denoiser in a single file; any other name unchanged."""
    if name.startswith((*_OTHERS, *_ENCODER_PREFIXES)) or _COMFYUI_ENCODER.match(name):
        return name
    prefix = next((prefix for prefix in _DENOISER_PREFIXES if name.startswith(prefix)), "")
    return f"{DENOISER}.{name.removeprefix(prefix)}"


def lookup_key(part: str, path: str) -> str:
    """Return the key of a layer that all spellings of it share."""
    flat = path.replace(".", "_")
    if part == DENOISER or part in DENOISERS:
        return flat
    return f"{part}.{flat.removeprefix('text_model_')}"


@lru_cache(maxsize=1 << 15)
def keys_of_layer(name: str, stem: str) -> tuple[str, ...]:
    """Return the keys under which a layer of a LoRA may be, the surest first.

    ``stem`` is what its file calls the module: only that tells original blocks of a UNet from diffusers'.
    """
    keys = []
    if (match := _LDM.search(stem.replace(".", "_"))) is not None:
        keys.append(match[1] + ("_bias" if name.endswith(".bias") else ""))
    part, dot, path = name.partition(".")
    if part in DENOISERS and dot:
        keys.append(lookup_key(part, path))
    elif part == "prior":
        keys += [lookup_key(part, path), lookup_key(DENOISER, path)]
    elif dot and (part in OTHER_DENOISERS or part.startswith("text_encoder")):
        keys.append(lookup_key(part, path))
        clip, _, inner = path.partition(".transformer.")
        keys += [lookup_key(encoder, inner) for encoder in _CLIPS.get(clip, ()) if part == "text_encoders"]
    else:
        keys.append(flat_name(name))
    return tuple(keys)
