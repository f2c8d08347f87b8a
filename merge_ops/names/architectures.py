"""Which model a LoRA was made for, guessed from the names and widths of its layers, and how it spells them.

Two spellings of one path (``lora_unet_blocks_0_attn_q``, ``transformer.blocks.0.attn.q``) are brought to one
name here. Names of another structure, such as diffusers' split q, k and v and the fused qkv of a model's
authors, are not: those need ``load(path, architecture=...)``, or a model that knows both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..errors import IncompatibleLoraError
from ..lora import Layer, Lora

# name -> what people call it
TITLES = {
    "sd1": "SD1.x", "sd2": "SD2.x", "sdxl": "SDXL", "sd3": "SD3", "flux": "Flux", "flux2": "Flux.2",
    "auraflow": "AuraFlow", "pixart": "PixArt", "lumina2": "Lumina 2", "zimage": "Z-Image",
    "qwen": "Qwen-Image", "wan": "Wan", "hunyuan": "HunyuanVideo", "ltx": "LTX-Video", "hidream": "HiDream",
}  # fmt: skip

_DENOISERS = ("unet", "transformer", "diffusion_model")
_UNET = r"(down|up|mid|input|output|middle)_blocks?_"
# a pattern of names without dots -> family, and whose structure of names it is; the first that fits counts
_PATTERNS = tuple(
    (re.compile(f"^({pattern})"), family, structure)
    for pattern, family, structure in (
        (_UNET, "unet", "diffusers"),
        (r"joint_transformer_blocks_\d+_", "auraflow", "diffusers"),
        (r"(double|single)_layers_\d+_", "auraflow", "original"),
        (r"single_transformer_blocks_\d+_attn_(to_qkv_mlp_proj|to_out$)", "flux2", "diffusers"),
        (r"single_transformer_blocks_\d+_(ff|norm1)_", "auraflow", "diffusers"),
        (r"single_transformer_blocks_\d+_", "bfl", "diffusers"),
        (r"double_stream_modulation|single_stream_modulation", "flux2", "original"),
        (r"(double|single)_stream_blocks_\d+_", "hidream", "diffusers"),
        (r"(double|single)_blocks_\d+_", "bfl", "original"),
        (r"joint_blocks_\d+_", "sd3", "original"),
        (r"transformer_blocks_\d+_(img|txt)_(mlp|mod)_", "qwen", "diffusers"),
        (r"transformer_blocks_\d+_ff_(context_)?linear_", "flux2", "diffusers"),
        (r"transformer_blocks_\d+_attn[12]_", "cross", "diffusers"),
        (r"transformer_blocks_\d+_(attn|ff_context|norm1)_", "joint", "diffusers"),
        (r"blocks_\d+_(cross_attn_(kv_linear|q_linear|proj)|attn_(qkv|proj)|mlp)", "pixart", "original"),
        (r"blocks_\d+_(self_attn|cross_attn|ffn_\d+$)", "wan", "original"),
        (r"blocks_\d+_(attn[12]|ffn_net)_", "wan", "diffusers"),
        (r"(layers|noise_refiner|context_refiner)_\d+_attention_(qkv|out$)", "lumina", "original"),
        (r"(layers|noise_refiner|context_refiner)_\d+_attention_to_", "lumina", "diffusers"),
        (
            r"(layers|noise_refiner|context_refiner)_\d+_(attn_to_|feed_forward_linear_)",
            "lumina2",
            "diffusers",
        ),
    )
)
_TEXT_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
# families whose models only the widths tell apart
_FAMILIES = {
    "unet": "Stable Diffusion", "bfl": "Flux", "cross": "LTX-Video or PixArt",
    "lumina": "Lumina 2 or Z-Image", "joint": "Flux, SD3 or Qwen-Image",
}  # fmt: skip
# not in the middle of a word: "highway" and "glow" are no experts
_EXPERT = re.compile(r"(?<![a-zA-Z])(high|low|HIGH|LOW|High|Low)(?=[_\-. ]?[nN]oise|[^a-z]|$)")
# as PEFT names the modules of decoders, T5 and GPT-2; a bare "layers.0." is also one of ACE-Step's denoiser
_LANGUAGE_MODEL = re.compile(
    r"(base_model\.model\.)?((model\.|language_model\.)+(layers\.\d+\.|embed_tokens$|norm$|lm_head$)"
    r"|(en|de)coder\.block\.\d+\.layer\.|transformer\.(h\.\d+\.|wte$|wpe$)|(embed_tokens|lm_head|shared)$)"
)
_LAST_NUMBER = re.compile(r"^[a-z_]*?blocks_(\d+)_")


def flat_name(name: str) -> str:
    """A layer's name without dots and without the denoiser's component: alike in all spellings of a path."""
    component, _, path = name.partition(".")
    return (path if component in _DENOISERS else name).replace(".", "_")


def is_language_model(name: str) -> bool:
    """True for a layer of a language model on its own, which has no component of a pipeline before it."""
    return _LANGUAGE_MODEL.match(name.removesuffix(".bias")) is not None


def is_text(name: str) -> bool:
    """True for a layer of a text encoder or a language model: ``text_weights`` hold for it."""
    return name.startswith("text_encoder") or is_language_model(name)


@dataclass(frozen=True, slots=True)
class Guess:
    """``name`` is a key of ``TITLES``; ``structure`` says whose names these are: diffusers or original."""

    name: str
    structure: str

    @property
    def title(self) -> str:
        return TITLES[self.name]


def guess(lora: Lora) -> Guess | None:
    """The architecture that most layers of a LoRA speak for; None if they are not known, or text only."""
    layers = {flat_name(name): layer for name, layer in lora.layers.items()}
    votes = _votes(layers)
    if not votes:
        return None
    (family, structure), _ = votes.most_common(1)[0]
    if any(other == "flux2" for other, _ in votes):
        family = "flux2"
    elif any(other == "qwen" for other, _ in votes):
        family = "qwen"
    elif family == "joint" and any(other == "bfl" for other, _ in votes):
        family = "bfl"
    name = _narrowed(family, layers, lora)
    return Guess(name, structure) if name in TITLES else None


def family_title(names: Iterable[str]) -> str | None:
    """What model layers of these names are of, as far as names alone say it."""
    votes = _votes(map(flat_name, names))
    family = votes.most_common(1)[0][0][0] if votes else ""
    return _FAMILIES.get(family) or TITLES.get(family)


def across_experts(loras: Sequence[Lora]) -> list[str]:
    """A warning where LoRAs of both experts of Wan 2.2 are merged with each other."""
    sides: dict[str, list[str]] = {"high": [], "low": []}
    for lora in loras:
        named = (lora.metadata.get(key, "") for key in ("ss_output_name", "modelspec.title"))
        title = " ".join((lora.name, *named))
        found = {side.lower() for side in _EXPERT.findall(title)}
        expected = guess(lora) if len(found) == 1 else None
        if expected is not None and expected.name == "wan":
            sides[found.pop()].append(lora.name)
    if not sides["high"] or not sides["low"]:
        return []
    return [
        f"{', '.join(sides['high'])} is for the high-noise expert of Wan 2.2 and {', '.join(sides['low'])} "
        "for the low-noise one; these are two models, so merge the LoRAs of each on their own"
    ]


def _votes(names: Iterable[str]) -> Counter[tuple[str, str]]:
    """How many names speak for each family and structure."""
    votes: Counter[tuple[str, str]] = Counter()
    for name in names:
        found = next((entry for entry in _PATTERNS if entry[0].match(name)), None)
        if found is not None:
            votes[found[1:]] += 1
    return votes


def _narrowed(family: str, layers: dict[str, Layer], lora: Lora) -> str:
    """The architecture within a family of like names, from the widths and the number of blocks."""
    width = max((min(layer.matrix_shape) for name, layer in layers.items() if "attn" in name), default=0)
    blocks = max((int(m[1]) for name in layers if (m := _LAST_NUMBER.match(name))), default=0)
    if family == "unet":
        inputs = {
            la.matrix_shape[1] for name, la in layers.items() if name.endswith(("attn2_to_k", "attn2_to_v"))
        }
        return next((_TEXT_WIDTH[size] for size in inputs if size in _TEXT_WIDTH), "")
    if family == "bfl":
        tencent = any(".img_attn_" in name or ".txt_attn_" in name for name in lora.layers)
        wide = any(
            layer.matrix_shape[0] == 9 * layer.matrix_shape[1]
            for name, layer in layers.items()
            if name.endswith("linear1")
        )
        refiner = any("token_refiner" in name for name in layers)
        deep = any(
            re.match(r"((double|transformer)_blocks_19|single_(transformer_)?blocks_3[89])_", name)
            for name in layers
        )
        return "flux2" if wide else "hunyuan" if tencent or refiner or deep else "flux"
    if family == "cross":
        return "pixart" if width == 1152 else "ltx"
    if family == "joint":
        return (
            "sd3"
            if width in (1536, 2432)
            else "flux2"
            if width == 6144
            else "qwen"
            if blocks > 37
            else "flux"
        )
    if family == "lumina":
        sizes = {layer.matrix_shape[1] for name, layer in layers.items() if "_attention_" in name}
        return "lumina2" if 2304 in sizes else "zimage"
    return family


def named_alike(loras: Sequence[Lora]) -> list[Lora]:
    """The LoRAs with one name for each path, the one with most dots, however their files spell it."""
    names: dict[str, set[str]] = {}
    for lora in loras:
        for name in (*lora.layers, *lora.whole_weights):
            names.setdefault(flat_name(name), set()).add(name)
    common = {
        name: max(alike, key=lambda other: (other.count("."), other))
        for alike in names.values()
        if len(alike) > 1
        for name in alike
    }
    return [_renamed(lora, common) for lora in loras]


def _renamed(lora: Lora, common: dict[str, str]) -> Lora:
    layers = {common.get(name, name): layer for name, layer in lora.layers.items()}
    replaced = {common.get(name, name): weight for name, weight in lora.whole_weights.items()}
    if layers.keys() == lora.layers.keys() and replaced.keys() == lora.whole_weights.keys():
        return lora
    if len(layers) < len(lora.layers) or len(replaced) < len(lora.whole_weights):
        raise IncompatibleLoraError(f"{lora.name} has one layer in two spellings; keep one of them")
    return replace(lora, layers=layers, whole_weights=replaced, origin=lora.origin or lora)


def check_structure(loras: Sequence[Lora]) -> None:
    """Refuse to merge two LoRAs of one model that share no layer because their names differ in structure.

    Raises:
        IncompatibleLoraError: names both, and what to do.
    """
    guesses = [(lora, guess(lora)) for lora in loras] if _any_strangers(loras) else []
    for i, (a, first) in enumerate(guesses):
        for b, second in guesses[i + 1 :]:
            if first is None or second is None or first.name != second.name:
                continue
            if first.structure != second.structure:
                theirs, ours = (a, b) if first.structure == "original" else (b, a)
                raise IncompatibleLoraError(
                    f"{theirs.name} names the layers of {first.title} as its authors do, {ours.name} as "
                    "diffusers does, so they would be merged apart; read both with "
                    f"load(path, architecture={first.name!r}), or connect the model in ComfyUI"
                )


def _any_strangers(loras: Sequence[Lora]) -> bool:
    """True if two LoRAs share no layer of the denoiser."""
    parts = [{name for name in lora.layers if not name.startswith("text_encoder")} for lora in loras]
    return any(a.isdisjoint(b) for i, a in enumerate(parts) for b in parts[i + 1 :])
