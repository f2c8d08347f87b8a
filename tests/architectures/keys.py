"""The key lists: modules of the real models, and every spelling that tools write for them.

Reads ``modules.json``, which has the names and shapes of all layers that a LoRA can change.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).with_name("modules.json")
_NUMBER = re.compile(r"\d+")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Spelling:
    """``stem`` writes a module's name, or gives None where the tool does not train the module."""

    label: str
    source: str  # whose module names it starts from: comfyui or diffusers
    stem: Callable[[str], str | None]
    down: str = ".lora_A.weight"
    up: str = ".lora_B.weight"
    alpha: bool = False


def shapes(architecture: str, source: str) -> Shapes:
    """Module names of a real model, with the shapes of their weights."""
    return unpacked(json.loads(MODULES.read_text(encoding="utf-8"))[architecture][source])


def packed(modules: Shapes) -> dict[str, list[str]]:
    """Names that differ in their first number only become one line: ``blocks.*.q`` in 0-39 of 64x64."""
    lines: dict[str, dict[str, list[int]]] = {}
    for name, shape in modules.items():
        found, size = _NUMBER.search(name), "x".join(map(str, shape))
        pattern = name if found is None else f"{name[: found.start()]}*{name[found.end() :]}"
        numbers = lines.setdefault(pattern, {}).setdefault(size, [])
        numbers.extend([] if found is None else [int(found[0])])
    return {
        pattern: [f"{_ranges(numbers)}:{size}" for size, numbers in sizes.items()]
        for pattern, sizes in lines.items()
    }


def unpacked(lines: dict[str, list[str]]) -> Shapes:
    """The opposite of ``packed``."""
    modules: Shapes = {}
    for pattern, entries in lines.items():
        for entry in entries:
            numbers, _, size = entry.partition(":")
            shape = tuple(map(int, size.split("x")))
            for part in filter(None, numbers.split(",")):
                first, _, last = part.partition("-")
                for number in range(int(first), int(last or first) + 1):
                    modules[pattern.replace("*", str(number), 1)] = shape
            if not numbers:
                modules[pattern] = shape
    return modules


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in runs)


def _flat(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name.replace(".", "_")


def _dotted(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name


_KOHYA = {"down": ".lora_down.weight", "up": ".lora_up.weight", "alpha": True}
_DEFAULT = {"down": ".lora_A.default.weight", "up": ".lora_B.default.weight"}


def _processor(name: str) -> str | None:
    """The oldest diffusers files: attention only, the LoRA is a part of the processor."""
    head, dot, last = name.partition(".to_")
    return f"unet.{head}.processor.to_{last.removesuffix('.0')}_lora" if dot else None


def _attention(name: str) -> str | None:
    return f"unet.{name}" if ".to_" in name else None


_UNETS = (
    Spelling("kohya, diffusers block names", "diffusers", _flat("lora_unet_"), **_KOHYA),
    Spelling("kohya, original (SGM) block names", "comfyui", _flat("lora_unet_"), **_KOHYA),
    Spelling("diffusers with PEFT", "diffusers", _dotted("unet.")),
    Spelling("diffusers 0.21", "diffusers", _attention, ".lora.down.weight", ".lora.up.weight"),
    Spelling("diffusers, attention processors", "diffusers", _processor, ".down.weight", ".up.weight"),
    Spelling("PEFT", "diffusers", _dotted("base_model.model.")),
    Spelling("SimpleTuner LyCORIS", "diffusers", _flat("lycoris_"), **_KOHYA),
    Spelling("ComfyUI", "comfyui", _dotted("diffusion_model.")),
)
_DITS = (
    Spelling("ComfyUI, ai-toolkit", "comfyui", _dotted("diffusion_model.")),
    Spelling("original names, no prefix", "comfyui", _dotted("")),
    Spelling("kohya, musubi", "comfyui", _flat("lora_unet_"), **_KOHYA),
    Spelling("diffusers", "diffusers", _dotted("transformer.")),
    Spelling("diffusers names, no prefix", "diffusers", _dotted("")),
    Spelling("diffusers names, diffusion_model.", "diffusers", _dotted("diffusion_model.")),
    Spelling("PEFT", "diffusers", _dotted("base_model.model.")),
    Spelling("DiffSynth", "diffusers", _dotted(""), **_DEFAULT),
    Spelling("OneTrainer", "diffusers", _flat("lora_transformer_"), **_KOHYA),
    Spelling("SimpleTuner LyCORIS", "diffusers", _flat("lycoris_"), **_KOHYA),
)
_PEFT_ORIGINAL = Spelling("PEFT, original names", "comfyui", _dotted("base_model.model."))
_XLABS_NAMES = {
    "img_attn.qkv": "processor.qkv_lora1",
    "txt_attn.qkv": "processor.qkv_lora2",
    "img_attn.proj": "processor.proj_lora1",
    "txt_attn.proj": "processor.proj_lora2",
    "linear2": "processor.proj_lora",
}


def _xlabs(name: str) -> str | None:
    for ours, theirs in _XLABS_NAMES.items():
        if name.endswith(f".{ours}"):
            return name.removesuffix(ours) + theirs
    return None


def _hunyuan(prefix: str) -> Callable[[str], str]:
    """Tencent's own names, which are ComfyUI's with other ends."""

    def stem(name: str) -> str:
        name = re.sub(r"_attn\.(qkv|proj)$", r"_attn_\1", name)
        name = re.sub(r"(_mod|\.modulation)\.lin$", r"\1.linear", name)
        name = re.sub(r"mlp\.0$", "mlp.fc1", re.sub(r"mlp\.2$", "mlp.fc2", name))
        return prefix + name

    return stem


_MORE = {
    "flux": (
        Spelling("XLabs", "comfyui", _xlabs, ".down.weight", ".up.weight"),
        _PEFT_ORIGINAL,
    ),
    "flux2": (_PEFT_ORIGINAL,),
    "zimage": (Spelling("kohya, diffusers names", "diffusers", _flat("lora_unet_"), **_KOHYA),),
    "qwen": (),
    "wan_t2v": (
        Spelling("Wan-Fun", "comfyui", _flat("lora_unet__"), **_KOHYA),
        Spelling("DiffSynth, original names", "comfyui", _dotted(""), **_DEFAULT),
        _PEFT_ORIGINAL,
    ),
    "hunyuan": (
        Spelling("Tencent", "comfyui", _hunyuan("transformer.")),
        Spelling("Tencent, diffusion_model.", "comfyui", _hunyuan("diffusion_model.")),
    ),
    "pixart": (
        Spelling("PEFT of an old script", "diffusers", _dotted("unet.base_model.model.")),
    ),
}  # fmt: skip
_MORE["wan_i2v"] = _MORE["wan_t2v"]


def spellings(architecture: str) -> tuple[Spelling, ...]:
    """The spellings of one architecture; where both sources name modules alike, doublets are left out."""
    if architecture in ("sd1", "sd2", "sdxl"):
        return _UNETS
    alike = shapes(architecture, "comfyui").keys() == shapes(architecture, "diffusers").keys()
    all_of_them = (*_DITS, *_MORE.get(architecture, ()))
    return tuple(s for s in all_of_them if not (alike and s.label in ("original names, no prefix", "PEFT")))


def stems(architecture: str, spelling: Spelling) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Stem of the keys -> module and shape of its weight."""
    named = (
        (spelling.stem(name), name, shape) for name, shape in shapes(architecture, spelling.source).items()
    )
    return {stem: (name, shape) for stem, name, shape in named if stem is not None}


def sizes(shape: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of up and down for a weight: ``(out, r)`` and ``(r, in)``, with the kernel if there is one."""
    kernel = shape[2:]
    return (shape[0], rank, *(1 for _ in kernel)), (rank, *shape[1:])
