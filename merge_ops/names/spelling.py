"""Spelling of layer names: from every spelling to one canonical name, and from that to kohya's.

The canonical name is the path of diffusers' module after its component, for example
``unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`` or
``text_encoder.text_model.encoder.layers.0.self_attn.q_proj``. Paths of other models are kept unchanged.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

from .architectures import ALIASES, PROCESSORS, WORDS
from .parts import DENOISERS
from .prefixes import OUTER, strip_flat, strip_wrappers
from .unet import DIFFUSERS_HEADS, LDM_HEADS, from_ldm, to_ldm

KOHYA_COMPONENTS = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_te4_": "text_encoder_4",
    "lora_transformer_": "transformer",
    "lora_prior_unet_": "prior",  # OneTrainer and ComfyUI, Stable Cascade
    "lora_prior_te_": "text_encoder",
    "lycoris_": "unet",
}
# the components that diffusers' pipelines load LoRAs into, and two that only ComfyUI knows
DOTTED_COMPONENTS = (
    "unet",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "text_encoder_4",
    "text_encoders",
    "transformer",
    "transformer_2",
    "transformer_ref",
    "prior",
    "connectors",
    "text_conditioner",
    "diffusion_model",
)
# component -> what kohya's names of it begin with; the others have no such names
_TO_KOHYA = {
    "unet": "lora_unet_",
    "text_encoder": "lora_te1_",
    "text_encoder_2": "lora_te2_",
    "text_encoder_3": "lora_te3_",
    "text_encoder_4": "lora_te4_",
    "transformer": "lora_transformer_",
    "diffusion_model": "lora_unet_",
    "prior": "lora_prior_unet_",
}
_KOHYA = re.compile(rf"({'|'.join(prefix.rstrip('_') for prefix in KOHYA_COMPONENTS)})[._]+")

_TEXT_WORDS = """text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 embeddings
token_embedding position_embedding final_layer_norm layer_norm1 layer_norm2 text_projection block layer
SelfAttention DenseReluDense q k v o wi wi_0 wi_1 wo shared model language_model o_proj gate_proj up_proj
down_proj embed_tokens lm_head norm""".split()
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
# ComfyUI's own names of CLIP models, which its LoraSave node writes
_COMFYUI_CLIP = {
    "text_encoders.clip_l.transformer.": "text_encoder.",
    "text_encoders.clip_h.transformer.": "text_encoder.",
    "text_encoders.clip_g.transformer.": "text_encoder_2.",
}
_OLD_PROCESSOR = {"to_q_lora": "to_q", "to_k_lora": "to_k", "to_v_lora": "to_v", "to_out_lora": "to_out.0"}
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "out_proj"}


@lru_cache(maxsize=1 << 15)  # the files of one model have the same names, and a saved file is read back
def canonical_name(stem: str) -> str:
    """Return the canonical name of a module; ``stem`` is a key without its end, ``.lora_down.weight``."""
    name = _canonical(strip_wrappers(stem).rstrip("._"))
    component, dot, path = name.partition(".")
    component, path = (component + dot, path) if component in DENOISERS else ("", name)
    for pattern, new in ALIASES:
        match = pattern.fullmatch(path)
        if match is not None:
            return component + match.expand(new)
    return name


def _canonical(stem: str) -> str:
    prefix = _KOHYA.match(stem)
    if prefix is not None:
        return _from_kohya(KOHYA_COMPONENTS[f"{prefix[1]}_"], stem[prefix.end() :])
    component, path = _split_component(stem)
    block, _, layer = path.partition(".processor.")
    if component in ("", "diffusion_model") and (
        layer in (layers := PROCESSORS.get(block.partition(".")[0], {}))
    ):
        return f"diffusion_model.{block}.{layers[layer]}"
    if not component:
        component = _component_of(path)
    if component == "diffusion_model":
        if not path.startswith(LDM_HEADS):
            return f"diffusion_model.{path}"
        component = "unet"
    return f"{component}.{_tidy(path, component)}" if component else path


def _from_kohya(component: str, path: str) -> str:
    """The canonical name of what follows ``lora_unet_`` and the like."""
    if component == "unet" and path.startswith("text_model_encoder_layers_"):
        component = "text_encoder"  # LyCORIS has one prefix for all models
    path = strip_flat(path, component)
    dotted = path if "." in path else _unflatten(path, component)
    return f"{component}.{_tidy(dotted, component) if dotted else path}"


def _split_component(path: str) -> tuple[str, str]:
    """The component that a dotted name begins with, or nothing, and the path inside it.

    Prefixes around the model may stand before and after the component, and it may be doubled.
    """
    component = ""
    while True:
        for prefix in OUTER:
            if path.startswith(prefix):
                path = path.removeprefix(prefix)
                break
        else:
            for prefix, known in _COMFYUI_CLIP.items():
                if path.startswith(f"{prefix}text_model.encoder.layers."):
                    path = known + path.removeprefix(prefix)
            if path.startswith("model.diffusion_model."):
                path = path.removeprefix("model.")
            head, dot, rest = path.partition(".")
            is_inner = (
                head == "diffusion_model" and component in DENOISERS
            )  # no model has a module of this name
            if not dot or head not in DOTTED_COMPONENTS or not (component in ("", head) or is_inner):
                return component, path
            component, path = head, rest


def kohya_name(canonical: str, ldm: bool = False, single_text_encoder: bool = False) -> str:
    """Return the kohya spelling of a canonical name.

    ``ldm`` gives UNets LDM block names, as SDXL trainers write; ``single_text_encoder`` gives the
    prefix for models that have only one. A name of a component without such a spelling is returned as it is.
    """
    component, _, path = canonical.partition(".")
    prefix = _TO_KOHYA.get(component)
    if prefix is None:
        return canonical
    if component == "unet" and ldm:
        path = to_ldm(path)
    if component == "text_encoder" and single_text_encoder:
        prefix = "lora_te_"
    return f"{prefix}{path.replace('.', '_')}"


def is_doubled(stem: str) -> bool:
    """Return True for ``lora_unet_unet_...``, which some exporters wrote by mistake."""
    return stem.startswith("lora_unet_unet_")


def _component_of(path: str) -> str:
    head = path.partition(".")[0]
    if path.startswith("time_embedding.") and not path.startswith("time_embedding.linear_"):
        return ""  # Wan's
    if head in DIFFUSERS_HEADS or head in ("input_blocks", "middle_block", "output_blocks"):
        return "unet"
    return "text_encoder" if head == "text_model" else ""


def _tidy(path: str, component: str) -> str:
    """Bring old module names up to date: LDM blocks, attention processors, the text model's prefix."""
    if component == "unet":
        path = from_ldm(path)
    head, _, last = path.rpartition(".")
    if head.endswith(".processor"):
        last = last.removesuffix("_lora") + "_lora"
    if last in _OLD_PROCESSOR:
        last = _OLD_PROCESSOR[last]
        path = (
            f"{head.removesuffix('.processor')}.{_OLD_TEXT[last] if component.startswith('text') else last}"
        )
    if component in ("text_encoder", "text_encoder_2") and path.startswith(
        ("encoder.layers.", "embeddings.")
    ):
        path = f"text_model.{path}"
    return path


def _unflatten(flat: str, component: str) -> str | None:
    """Put the dots back into an underscored path, word by word; None if a word is unknown."""
    word, words, place = _word_pattern(component), list[str](), 0
    while place < len(flat):
        match = word.match(flat, place)
        if match is None:
            return None
        words.append(match[1])
        place = match.end()
    return ".".join(words)


@cache
def _word_pattern(component: str) -> re.Pattern[str]:
    """Match a number, or the longest of the component's words that fits, and the underscore after it."""
    known = _TEXT_WORDS if component in _TEXT_ENCODERS else WORDS.get(component, ())
    words = sorted(known, key=len, reverse=True)
    return re.compile(rf"({'|'.join((r'[0-9]+', *words))})(?:_|$)")
