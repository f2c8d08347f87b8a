"""Changes to structured inputs: keys, roles, shapes, types and settings, one or a few at a time."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from cases import FILLS

from merge_ops import METHODS
from merge_ops.adapters.reading import TABLES
from merge_ops.formats.header import BITS

STEMS = ["lora_unet_mid_block_attentions_0_proj_in", "unet.conv_in", "a.q", "a.v", "transformer.x_embedder"]
STEMS += [
    "base_model.model.a.q",
    "base_model.model.a.v",
    "base_model.model.a.experts",
    "lora_te1_a",
    "\u00b2",
    "",
]
SUFFIXES = [
    *TABLES.suffixes,
    ".weight",
    ".bias",
    ".base_layer.weight",
    ".token_adapter.trainable_tokens_delta",
]
SUFFIXES += [".base_layer.lora_A.weight", ".base_layer.lora_B.weight", ".lora_A.other.weight", ".config"]
OPTIONS = """peft_type r alpha lora_alpha rank_pattern alpha_pattern target_modules feedforward_modules
modules_to_save bias coft eps use_cayley_neumann num_cayley_neumann_terms fan_in_fan_out use_rslora use_dora
auto_mapping target_parameters exclude_modules layers_to_transform layers_pattern trainable_token_indices
token_indices layer_replication init_lora_weights lora_bias use_qalora megatron_config block_share
rank_dropout decompose_both loftq_config base_model_name_or_path task_type revision inference_mode""".split()
PATTERNS = [
    "q",
    "a.q",
    "^a",
    ".*q",
    r"a\.(q|v)",
    "(a|aa)*",
    ".?" * 30,
    "(?i)q",
    r"(.)\1",
    "(",
    "[",
    "",
    "a{3}",
    "(?=a)",
]
METADATA = ["lora_adapter_metadata", "unet", "text_encoder", "lora_alpha", "alpha", "rank", "ss_network_dim"]
METADATA += [
    "transformer.lora_alpha",
    "ss_network_args",
    "lora_alloy",
    "modelspec.title",
    "reference_downscale_factor",
]
SETTINGS = [
    "density",
    "epsilon",
    "lambda_",
    "outliers",
    "t",
    "normalize",
    "twice",
    "report",
    "rank",
    "cut",
    "share",
]


def mutated(data: bytes, rng: random.Random, pool: list[bytes]) -> bytes:
    """Return a changed case; ``data`` and the inputs of the pool may be of any kind."""
    case = copy.deepcopy(parsed(data) or {})
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        rng.choice((_tensor, _tensor, _shape, _config, _metadata, _how, _anywhere, _join))(case, rng, pool)
    return json.dumps(case).encode()


def parsed(data: bytes) -> dict[str, Any] | None:
    """Return the case that an input holds, if it does."""
    try:
        case = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return case if isinstance(case, dict) else None


def _value(rng: random.Random, depth: int = 2) -> Any:
    simple = (
        None,
        True,
        False,
        0,
        1,
        2,
        3,
        -1,
        8,
        10**9,
        10**30,
        0.5,
        1e-320,
        float("nan"),
        1e308,
        "",
        "all",
        "none",
    )
    if depth and rng.random() < 0.35:
        if rng.random() < 0.5:
            return [_value(rng, depth - 1) for _ in range(rng.randrange(3))]
        return {rng.choice(PATTERNS): _value(rng, depth - 1) for _ in range(rng.randrange(3))}
    return rng.choice((*simple, *PATTERNS, *TABLES.peft_types, "TRAINABLE_TOKENS"))


def _tensor(case: dict[str, Any], rng: random.Random, _: list[bytes]) -> None:
    tensors = _part(case, "tensors")
    keys = list(tensors)
    if keys and rng.random() < 0.25:
        del tensors[rng.choice(keys)]
    stem = rng.choice(
        [key.rpartition(".")[0].removesuffix(".lora_A").removesuffix(".lora_B") for key in keys] or STEMS
    )
    stem = rng.choice(STEMS) if rng.random() < 0.3 else stem
    role = rng.choice(SUFFIXES)
    for suffix in SUFFIXES if rng.random() < 0.3 else [role]:  # all tensors of a kind, or one
        kind = TABLES.owners.get(role)
        if suffix == role or (kind is not None and TABLES.owners.get(suffix) is kind and rng.random() < 0.8):
            tensors[stem + suffix] = [_dtype(rng), _sides(rng), rng.choice(list(FILLS))]


def _dtype(rng: random.Random) -> str:
    return rng.choice(("F32", "F32", "F32", "F16", "BF16", rng.choice(list(BITS))))


def _sides(rng: random.Random) -> list[int]:
    usual = ([2, 2], [2, 2], [2, 4], [4, 2], [2], [1], [], [2, 2, 1, 1], [2, 2, 2], [1, 2, 2, 2], [3, 2])
    return rng.choice((rng.choice(usual), [rng.choice((0, 1, 2, 3, 4, 8)) for _ in range(rng.randrange(5))]))


def _shape(case: dict[str, Any], rng: random.Random, _: list[bytes]) -> None:
    tensors = _part(case, "tensors")
    if tensors:
        given = tensors[rng.choice(list(tensors))]
        if isinstance(given, list) and len(given) == 3:
            place = rng.randrange(3)
            given[place] = (_dtype(rng), _sides(rng), rng.choice(list(FILLS)))[place]


def _config(case: dict[str, Any], rng: random.Random, _: list[bytes]) -> None:
    if rng.random() < 0.1:
        case["config"] = None
        return
    _part(case, "config")[rng.choice(OPTIONS)] = _value(rng)
    if rng.random() < 0.5:  # tensors of a folder have this prefix
        case["tensors"] = {
            key if key.startswith("base_model.model.") else f"base_model.model.{key}": given
            for key, given in _part(case, "tensors").items()
        }


def _metadata(case: dict[str, Any], rng: random.Random, _: list[bytes]) -> None:
    metadata = _part(case, "metadata")
    component = rng.choice(("", "unet.", "transformer.", "text_encoder."))
    inner = {f"{component}{rng.choice(OPTIONS)}": _value(rng) for _ in range(rng.randrange(1, 4))}
    name = rng.choice(METADATA)
    metadata[name] = inner if name == METADATA[0] or rng.random() < 0.3 else _value(rng)


def _how(case: dict[str, Any], rng: random.Random, _: list[bytes]) -> None:
    how = _part(case, "merge")
    how["method"] = rng.choice(list(METHODS))
    how["twice"] = rng.random() < 0.6
    how["base"] = rng.choice(("none", "eye", "eye", "wide", "conv", "empty", "nan", None))
    how["space"] = rng.choice(("delta", "delta", "factors"))
    how["report"] = rng.random() < 0.3
    how["rank"] = rng.choice((None, None, 1, 2, 0, -1, 99))
    if rng.random() < 0.5:
        how[rng.choice(SETTINGS)] = rng.choice((0, 1, 0.5, 0.1, -1, 2, float("nan"), True, 5e-324))
    if rng.random() < 0.5:
        saved = {"format": rng.choice(("auto", "kohya", "peft", "diffusers", "generic", "peft-keys", "x"))}
        case["save"] = saved | {"half": rng.random() < 0.5, "rank": rng.choice((None, None, 1, 3, 0))}


def _anywhere(case: dict[str, Any], rng: random.Random, _: list[bytes]) -> None:
    """Change one value anywhere, to one of any type."""
    place: Any = case
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or rng.random() < 0.15:
            place[key] = _value(rng)
            return
        place = place[key]


def _join(case: dict[str, Any], rng: random.Random, pool: list[bytes]) -> None:
    """Take over tensors, or a whole part, from another case."""
    other = parsed(rng.choice(pool)[1:])
    if other is not None:
        name = rng.choice(("tensors", "metadata", "config", "merge"))
        if isinstance(other.get(name), dict):
            case[name] = {**_part(case, name), **other[name]} if rng.random() < 0.6 else other[name]


def _part(case: dict[str, Any], name: str) -> dict[str, Any]:
    part = case.get(name)
    if not isinstance(part, dict):
        part = case[name] = {}
    return part
