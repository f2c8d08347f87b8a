"""The metadata of a written file, and the configuration of a PEFT folder."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from ..adapters import Ia3
from ..formats.experts import expert_of
from ..formats.statements import DIFFUSERS_METADATA
from ..formats.tokens import TOKENS
from ..formats.whole import BIAS, EMBEDDING
from ..lora import Lora, LowRank, WholeWeight
from ..patterns import Patterns, pattern_of
from .carried import HUB_NAME, carried_over
from .ia3 import ia3_config
from .stems import component_of, without_component
from .tensors import matrices_of
from .tokens import tokens_config, tokens_only_config


def file_metadata(
    layers: dict[str, LowRank], form: str, loras: list[Lora], recipe: dict[str, Any], title: str
) -> dict[str, str]:
    """Return the file's metadata: carried facts, ranks and recipe, but no hashes and never a folder name."""
    metadata = {"format": "pt", "lora_alloy": json.dumps(recipe), **carried_over(loras)}
    matrices = matrices_of(layers)
    if form == "kohya" and matrices:
        ranks = sorted({layer.rank for layer in matrices.values()})
        rank = str(ranks[0]) if len(ranks) == 1 else "Dynamic"
        alpha = f"{next(layer.scale * layer.rank for layer in matrices.values()):g}"
        metadata |= {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": alpha}
        metadata["ss_output_name"] = title
    if form == "diffusers":
        metadata[DIFFUSERS_METADATA] = json.dumps(_diffusers_config(layers))
    merged_from = ", ".join(lora.name for lora in loras)
    return metadata | {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.merged_from": merged_from,
    }


def with_hashes(metadata: dict[str, str], form: str, data_hash: str, legacy_hash: str) -> dict[str, str]:
    """Return the metadata of a file with its hashes; see ``hashes``."""
    own = {"sshs_model_hash": data_hash, "sshs_legacy_hash": legacy_hash} if form == "kohya" else {}
    return {**metadata, **own, "modelspec.hash_sha256": f"0x{data_hash}"}


def peft_config(
    layers: dict[str, LowRank], stems: dict[str, str], loras: list[Lora],
    whole_weights: dict[str, WholeWeight], ia3: dict[str, Ia3],
) -> dict[str, Any]:  # fmt: skip
    """Return ``adapter_config.json``: one rank and alpha, patterns where layers differ, and all targets."""
    matrices = matrices_of(layers)
    by_path = {stems[name].removeprefix("base_model.model."): layer for name, layer in matrices.items()}
    targets = [path for path in sorted(by_path) if not expert_of(path)]
    by_path = {(expert_of(path) or (path,))[0]: layer for path, layer in by_path.items()}
    inherited = next((lora.config for lora in loras if lora.config), {})
    kept = {key: inherited[key] for key in ("task_type", "auto_mapping", "revision") if inherited.get(key)}
    base = inherited.get("base_model_name_or_path")
    if isinstance(base, str) and HUB_NAME.fullmatch(base):  # never a folder on somebody's machine
        kept["base_model_name_or_path"] = base
    if ia3:
        return {
            **kept,
            **ia3_config(ia3),
            "modules_to_save": _whole_config(whole_weights, loras)["modules_to_save"],
        }
    if not layers and whole_weights and all(weight.rows for weight in whole_weights.values()):
        return {**kept, **tokens_only_config(whole_weights, stems)}
    return {
        "peft_type": "LORA",
        **kept,
        **_rank_config(by_path),
        "target_modules": targets,
        "target_parameters": sorted(by_path.keys() - set(targets)) or None,
        "trainable_token_indices": tokens_config(whole_weights, stems),
        "fan_in_fan_out": any(layer.layout == "fan_in_fan_out" for layer in layers.values()),
        **_whole_config(whole_weights, loras),
        "lora_bias": len(matrices) < len(layers),
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


def _whole_config(whole_weights: dict[str, WholeWeight], loras: list[Lora]) -> dict[str, Any]:
    """Return the settings that make PEFT expect trained biases and heads."""
    biases = any(weight.why == BIAS for weight in whole_weights.values())
    known = [str(m) for lora in loras for m in (lora.config or {}).get("modules_to_save") or []]
    heads = [
        name.removesuffix(".bias")
        for name, weight in whole_weights.items()
        if weight.why not in (BIAS, TOKENS) and (weight.why != EMBEDDING or name.endswith(tuple(known)))
    ]
    ends = {next((m for m in known if head.endswith(m)), head) for head in heads}
    return {"bias": "all" if biases else "none", "modules_to_save": sorted(ends) or None}


def _diffusers_config(layers: dict[str, LowRank]) -> dict[str, Any]:
    """Return one configuration per component, flattened with the component as prefix, as in diffusers."""
    flat: dict[str, Any] = {}
    matrices = matrices_of(layers)
    for component in sorted({component_of(name) for name in layers}):
        # without "text_model.", which transformers 5 dropped, the names fit the modules of every version
        own = {
            without_component(name, component).removeprefix("text_model."): layer
            for name, layer in matrices.items()
            if component_of(name) == component
        }
        config = {**_rank_config(own), "target_modules": sorted(own)}
        if any(component_of(name) == component and name not in matrices for name in layers):
            config["lora_bias"] = True
        flat |= {f"{component}.{key}" if component else key: value for key, value in config.items()}
    return flat


def _rank_config(layers: dict[str, LowRank]) -> dict[str, Any]:
    """Return ranks and alphas: ``r`` is the most common rank, and patterns hold the others.

    PEFT uses the first match, in which a dot is any letter: longer names come first, and among names of one
    length those with fewer dots.
    """
    common = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0] if layers else 1
    differing = [name for name in layers if layers[name].rank != common]
    patterns = Patterns(map(pattern_of, differing))
    listed = [name for name in layers if patterns.first(name) is not None]
    listed.sort(key=lambda name: (-len(name), name.count(".")))
    others = {pattern_of(name): layers[name].rank for name in listed}
    return {"r": common, "lora_alpha": common, "rank_pattern": others, "alpha_pattern": dict(others)}
