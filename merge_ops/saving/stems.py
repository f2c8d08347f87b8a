"""What the keys of each layer begin with in a file: its name as the readers of the format know it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import MergeError
from ..extracting import Extracted
from ..lora import Lora
from ..merging.merged import Merged
from ..names.original import add_dots
from ..names.parts import DENOISERS, is_language_model
from ..names.recognise import Guess, guess
from ..names.spelling import DOTTED_COMPONENTS, KOHYA_COMPONENTS, kohya_name

_FLAT = re.compile(r"^[^.]*_\d+_[^.]*$")  # a path in kohya's spelling
_PEFT_STEM = re.compile(r"base_model\.model\.(?!module\.|pipe\.|pipeline\.|dit\.|base_model\.model\.)")
_LDM_STEMS = ("lora_unet_input_blocks_", "lora_unet_output_blocks_")


def module_names(layers: Iterable[str], form: str, loras: list[Lora]) -> dict[str, str]:
    """Return the stem of each layer's keys in the file; a bias is written under its module.

    Raises:
        MergeError: if the format cannot hold the layers of these models together.
    """
    names = list(layers)
    modules = list(dict.fromkeys(name.removesuffix(".bias") for name in names))
    stems = _stems(modules, form, loras)
    return {name: stems[name.removesuffix(".bias")] for name in names}


def stems_of(merged: Merged, form: str) -> dict[str, str]:
    """Return ``module_names`` of everything in a merge, and the stems that an extraction states.

    Raises:
        MergeError: if the format cannot hold the layers of these models together.
    """
    stems = module_names((*merged.layers, *merged.whole_weights), form, merged.loras)
    return stems | merged.stems if isinstance(merged, Extracted) else stems


def _stems(names: list[str], form: str, loras: list[Lora]) -> dict[str, str]:
    spelled = _spelled_in_peft_folders(loras)
    components = {_component_in(name, spelled) for name in names}
    if form == "peft":
        if len(components) > 1:
            parts = ", ".join(sorted(part or "a text model" for part in components))
            other = "kohya" if all(map(has_kohya_name, names)) else "diffusers"
            raise MergeError(
                f"a PEFT folder is for one model, but the merge has layers of {parts}; use format={other!r}"
            )
        dotted = {name: spelled.get(name) or _with_dots(name, form) for name in names}
        return {
            name: spelled.get(name) or f"base_model.model.{without_component(each, component_of(each))}"
            for name, each in dotted.items()
        }
    _refuse_unnamed(names, form, spelled)
    found = next(filter(None, map(guess, loras)), None)
    if form == "diffusers":
        return {name: _known_to_readers(_with_dots(name, form), found) for name in names}
    keys = {
        name.removesuffix(".bias"): layer.key
        for lora in reversed(loras)
        for name, layer in lora.layers.items()
    }
    ldm = {name: key.rstrip("._") for name, key in keys.items() if key.startswith(_LDM_STEMS)}
    numbered = "text_encoder_2" in components or any(key.startswith("lora_te1_") for key in keys.values())
    return {
        name: ldm.get(name)
        or _with_known_prefix(name, found)
        or kohya_name(name, bool(ldm), single_text_encoder=not numbered)
        for name in names
    }


def _refuse_unnamed(names: list[str], form: str, spelled: dict[str, str]) -> None:
    """Refuse layers for which a file of one pipeline has no name.

    Other layers that name no component are written under the name that they came with.
    """
    for name in names:
        component = _component_in(name, spelled)
        if not component and is_language_model(name):
            raise MergeError(
                f"{name} belongs to a text model, which {form} files cannot hold; use format='peft'"
            )
        if not component and name in spelled:
            raise MergeError(
                f"{name} is a module of the model that a PEFT folder is for, and {form} files hold only "
                "parts of known pipelines; use format='peft'"
            )
        if form == "kohya" and not has_kohya_name(name):
            raise MergeError(
                f"{name} belongs to {component}, for which kohya files have no name; use format='diffusers', "
                "or merge each part of the pipeline on its own"
            )


def has_kohya_name(name: str) -> bool:
    """Return True if kohya files have a name for the part of the pipeline that a layer belongs to."""
    return component_of(name) in ("", "text_encoders", "diffusion_model", *KOHYA_COMPONENTS.values())


def _with_dots(name: str, form: str) -> str:
    """The name of a module, where the file that it came from has kohya's underscores for its dots."""
    component, _, path = name.partition(".")
    if component not in DENOISERS or not _FLAT.search(path):
        return name
    dotted = add_dots(name)
    if "." not in dotted:
        raise MergeError(
            f"{name} has underscores where the model's own name has dots, and {form} files need those; use "
            "format='kohya', or read the LoRA with load(path, architecture=...)"
        )
    return f"diffusion_model.{dotted}"


def _known_to_readers(name: str, found: Guess | None) -> str:
    """The name with dots that ComfyUI and diffusers both look for, where one of them does not know it."""
    component, _, path = name.partition(".")
    if found is None or found.others or component not in ("transformer", "diffusion_model"):
        return name
    row = found.architecture
    if found.structure == "original":
        for pattern, new in row.converter.renames if row.converter else ():
            path = re.sub(pattern, new, path)
        return f"{component}.{path}"
    if row.component != "transformer" or row.kohya in ("lora_transformer_", "transformer."):
        return f"{row.component}.{path}"
    return name


def _with_known_prefix(name: str, found: Guess | None) -> str | None:
    """Diffusers' name with the prefix that readers of kohya files know for the model.

    Where it is not known which of two models it is, the name with dots is known for both.
    """
    component, _, path = name.partition(".")
    if component not in ("transformer", "diffusion_model") or (found and found.structure == "original"):
        return None
    if found is None:  # stock ComfyUI knows "lora_transformer_" for two models only
        return None if component == "diffusion_model" or _FLAT.search(path) else name
    prefixes = {row.kohya for row in (found.architecture, *found.others)}
    prefix = prefixes.pop() if len(prefixes) == 1 else f"{found.architecture.component}."
    if not prefix.endswith("."):
        return prefix + path.replace(".", "_")
    return None if _FLAT.search(path) else prefix + path


def _spelled_in_peft_folders(loras: list[Lora]) -> dict[str, str]:
    """Return the stem of each layer's keys as the first PEFT folder with that layer spells it."""
    folders = [lora for lora in reversed(loras) if lora.dialect == "peft"]
    stems = {}
    for lora in folders:
        for name, weight in lora.whole_weights.items():
            stem = weight.key if weight.rows else weight.key.rpartition(".")[0]
            stems[name.removesuffix(".bias")] = stem.removesuffix(".base_layer")
        stems |= {name.removesuffix(".bias"): layer.key for name, layer in lora.layers.items()}
    # a folder of a model under DDP has "module." in its keys, which no other reader knows
    return {name: stem for name, stem in stems.items() if _PEFT_STEM.match(stem)}


def _component_in(name: str, spelled: dict[str, str]) -> str:
    """Return the component of a layer; empty if its whole name is a module path in a PEFT folder's model.

    So ``transformer.h.0.attn.c_attn`` is a layer of GPT-2, not of a pipeline's transformer.
    """
    return "" if spelled.get(name) == f"base_model.model.{name}" else component_of(name)


def component_of(name: str) -> str:
    """Return the part of a pipeline that a layer belongs to; empty for a layer of a text model."""
    head = name.partition(".")[0]
    return head if head in DOTTED_COMPONENTS else ""


def without_component(name: str, component: str) -> str:
    """Return the path of a layer inside its component."""
    return name.removeprefix(f"{component}.") if component else name
