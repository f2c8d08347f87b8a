"""The parts of a single-file checkpoint: what stands before the names of each, and what no LoRA changes."""

from __future__ import annotations

from dataclasses import dataclass

# prefix -> (component of canonical names, whether the names after it are OpenCLIP's)
_PARTS: dict[str, tuple[str, bool]] = {
    "model.diffusion_model.": ("diffusion_model.", False),
    "cond_stage_model.transformer.": ("text_encoder.", False),
    "cond_stage_model.model.": ("text_encoder.", True),
    "conditioner.embedders.0.transformer.": ("text_encoder.", False),
    "conditioner.embedders.0.model.": ("text_encoder_2.", True),
    "conditioner.embedders.1.model.": ("text_encoder_2.", True),
    "text_encoders.clip_l.transformer.": ("text_encoder.", False),
    "text_encoders.clip_h.transformer.": ("text_encoder.", False),
    "text_encoders.clip_g.transformer.": ("text_encoder_2.", False),
    "text_encoders.": ("text_encoders.", False),
}
# prefix -> what it is
_BESIDE = {
    "first_stage_model.": "the VAE",
    "vae.": "the VAE",
    "model_ema.": "the EMA weights",
    "control_model.": "a control model",
    "cond_stage_model.": "a part of the text encoder that no LoRA has a name for",
    "conditioner.": "a part of the text encoder that no LoRA has a name for",
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


@dataclass(frozen=True, slots=True)
class Part:
    """Where a key of a checkpoint belongs: a component (or nothing) and the path in it, or why to no part."""

    component: str
    path: str
    is_open_clip: bool = False
    beside: str = ""  # what it is instead


def part_of(key: str) -> Part:
    """Return the part of a single-file checkpoint that a key belongs to; without a prefix, no component."""
    if key in _BUFFERS or key.rpartition(".")[2] in _BUFFER_ENDS:
        return Part("", key, beside=BUFFERS)
    for prefix, (component, is_open_clip) in _PARTS.items():
        if key.startswith(prefix):
            return Part(component, key.removeprefix(prefix), is_open_clip)
    for prefix, what in _BESIDE.items():
        if key.startswith(prefix):
            return Part("", key, beside=what)
    return Part("", key)
