"""Metadata that a merged file carries over from its sources, and new hashes."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from ..errors import ParameterError, shown
from ..formats.statements import states_scale
from ..lora import Lora
from ..merging.common_metadata import fact_of, facts_of_use
from .usage import usage_of

# about the base model: carried over where all sources that state it agree
_AGREED = (
    "modelspec.architecture", "modelspec.encoder_layer", "modelspec.implementation",
    "modelspec.prediction_type", "modelspec.resolution", "modelspec.timestep_range",
    "ss_base_model_version", "ss_clip_skip", "ss_new_sd_model_hash", "ss_new_vae_hash", "ss_resolution",
    "ss_sd_model_hash", "ss_v2", "ss_vae_hash",
)  # fmt: skip
_AGREED_NAMES = ("ss_sd_model_name", "ss_vae_name")  # likewise, but trainers may write a path here
_STATED_BY_ALL = ("modelspec.license",)  # not carried over if any source is silent
_UNITED = ("modelspec.tags", "trigger_words")  # comma-separated words
_TAGS = "ss_tag_frequency"  # JSON: dataset to tag to count
HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")  # of a model; anything else may be a folder on some machine
_MAX_VALUE = 500  # characters of a carried value
_MAX_OWN = 1 << 18  # characters of a value of a single source; thumbnails are the longest
_MAX_WORDS = 100
_MAX_DATASETS = 32
_MAX_TAGS = 100  # per dataset, the most frequent
_MAX_JSON = 1 << 22  # characters of a source's tags

# about the file that says it: its layout, its hashes, how its modules were stored
_OF_THE_FILE = re.compile(
    r"format|key_format|lora_alloy|lora_adapter_metadata|sshs_.*|ss_network_(module|dim|alpha|args)"
    r"|ss_output_name|modelspec\.(title|merged_from|sai_model_spec|hash_sha256)|(unet|text_encoder)(:.*)?|<.*>"
)
# about one training or its author; of a merge of several it would be said of the wrong thing
_OF_A_TRAINING = re.compile(
    r"ss_.*|modelspec\..*|training_info|software|name|version|.*(hash|sha256|date|time)"
)
_FOLDER = re.compile(
    r"(?:^|[\s\"'=:,;(\[{])(?:~?/[^\s/\"']+/|[A-Za-z]:[\\/]|\\\\\w)"
)  # a path that begins at a root

_LEGACY = (0x100000, 0x110000)  # the bytes of a file that the old hash of sd-webui-additional-networks covers


def carried_over(loras: list[Lora]) -> dict[str, str]:
    """Return metadata of the sources that is true of their merge: facts that agree, words and hints of all.

    A single source keeps everything that does not describe its own file. Of several, what one training or its
    author is about is left out, and everything else is carried over where those that state it agree.
    """
    carried = {
        key: value
        for key, value in (_own(loras[0]) if len(loras) == 1 else _agreed(loras)).items()
        if value and not fact_of(key)
    }
    carried |= {key: value for key, value in facts_of_use(loras).values.items() if len(value) <= _MAX_VALUE}
    sources = [lora.metadata for lora in loras]
    for key in _UNITED if len(loras) > 1 else ():
        words = _united(own[key] for own in sources if key in own)
        if words:
            carried[key] = ", ".join(words)
    carried |= usage_of(loras, _united, lambda text: _FOLDER.search(text) is not None)
    tags = _united_tags([own[_TAGS] for own in sources if _TAGS in own])
    if tags:
        carried[_TAGS] = json.dumps(tags)
    return carried


def _own(lora: Lora) -> dict[str, str]:
    """The metadata of a single source that still hold, without the names of folders."""
    return {
        key: _without_folder(value) if key in _AGREED_NAMES else value
        for key, value in lora.metadata.items()
        if len(value) <= _MAX_OWN
        and not _describes_the_file(key, value)
        and key != _TAGS
        and (key in _AGREED_NAMES or value.startswith("data:") or not _FOLDER.search(value))
    }


def _agreed(loras: list[Lora]) -> dict[str, str]:
    """What all sources that state it agree on, and what a license needs: that every source states it."""
    sources = [lora.metadata for lora in loras]
    special = (*_AGREED, *_AGREED_NAMES, *_STATED_BY_ALL)
    others = dict.fromkeys(
        key
        for own in sources
        for key, value in own.items()
        if key not in special
        and key not in (*_UNITED, _TAGS)
        and not (_OF_A_TRAINING.fullmatch(key) or _describes_the_file(key, value) or _FOLDER.search(value))
    )
    agreed: dict[str, str] = {}
    for key in (*special, *others):
        values = [own[key] for own in sources if key in own]
        if key in _AGREED_NAMES:
            values = [_without_folder(value) for value in values]
        if key in _STATED_BY_ALL and len(values) < len(sources):
            continue
        if len(set(values)) == 1 and len(values[0]) <= _MAX_VALUE:
            agreed[key] = values[0]
    return agreed


def check_stated(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata that a caller gives a file.

    Raises:
        ParameterError: for what describes the file itself, such as its hashes, and what is no text.
    """
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise ParameterError(f"the metadata {shown(key)} must be text, not {shown(value)}")
        if key.startswith("ss_network_") or _describes_the_file(key, value):
            raise ParameterError(f"the metadata {shown(key)} is written by saving itself; leave it out")
    return dict(metadata)


def _describes_the_file(key: str, value: str) -> bool:
    return _OF_THE_FILE.fullmatch(key) is not None or states_scale(key, value)


def hashes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[str, str]:
    """Return ``(SHA-256 of the tensor data, old hash)`` of a file, as kohya's trainer defines them.

    The first does not depend on the metadata. The old hash covers 64 KiB at offset 1 MiB of the same file
    with only the ``ss_`` keys as metadata.
    """
    header, order = file_header(tensors, {k: v for k, v in metadata.items() if k.startswith("ss_")})
    data, legacy, place = hashlib.sha256(), hashlib.sha256(), 0
    chunks: Iterator[bytes | memoryview] = (_bytes_of(tensors[key]) for key in order)
    for raw in itertools.chain((header,), chunks):
        if raw is not header:
            data.update(raw)
        first, last = (min(max(edge - place, 0), len(raw)) for edge in _LEGACY)
        legacy.update(raw[first:last])
        place += len(raw)
    return data.hexdigest(), legacy.hexdigest()[:8]


def _without_folder(name: str) -> str:
    return name if HUB_NAME.fullmatch(name) else re.split(r"[\\/]", name)[-1]


def _united(values: Iterable[str]) -> list[str]:
    """Return the words of all values, each once in its first spelling, as many as there is room for."""
    words: dict[str, str] = {}
    for word in (word.strip() for value in values for word in value[:_MAX_JSON].split(",")):
        words.setdefault(word.casefold(), word)
    kept: list[str] = []
    for word in words.values():
        if word and len(kept) < _MAX_WORDS and sum(map(len, kept)) + len(word) <= 2 * _MAX_VALUE:
            kept.append(word)
    return kept


def _united_tags(values: list[str]) -> dict[str, dict[str, int]]:
    """Return the most frequent tags of each dataset, summed over sources that share a dataset."""
    datasets: dict[str, dict[str, int]] = {}
    for value in dict.fromkeys(values):  # sources trained on the same images have the same tags
        for dataset, tags in _tags_of(value).items():
            if len(datasets) >= _MAX_DATASETS and dataset not in datasets:
                continue
            known = datasets.setdefault(dataset, {})
            for tag, count in tags.items():
                known[tag] = known.get(tag, 0) + count
    return {
        dataset: dict(sorted(tags.items(), key=lambda item: (-item[1], item[0]))[:_MAX_TAGS])
        for dataset, tags in datasets.items()
    }


def _tags_of(value: str) -> dict[str, dict[str, int]]:
    """Return the well-formed part of one source's tags; the rest is dropped, since nothing depends on it."""
    try:
        read: Any = json.loads(value) if len(value) <= _MAX_JSON else {}
    except (ValueError, RecursionError):
        return {}
    valid: dict[str, dict[str, int]] = {}
    for dataset, tags in read.items() if isinstance(read, dict) else ():
        if isinstance(tags, dict):
            valid[_without_folder(dataset)[:_MAX_VALUE]] = {
                tag: count
                for tag, count in tags.items()
                if type(count) is int and 0 < count < 10**9 and len(tag) <= _MAX_VALUE
            }
    return valid


def file_header(tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[bytes, list[str]]:
    """Return what safetensors writes before the data, and the order of the tensors.

    The names and the order of the dtypes come from safetensors itself, which writes a file with one number of
    each; tensors of one dtype are in the order of their keys.
    """
    dtypes = dict.fromkeys(tensor.dtype for tensor in tensors.values())
    small = safetensors_bytes({str(dtype): torch.zeros(1, dtype=dtype) for dtype in dtypes})
    entries = json.loads(small[8 : 8 + int.from_bytes(small[:8], "little")])
    places = {dtype: int(entries[str(dtype)]["data_offsets"][0]) for dtype in dtypes}
    order = sorted(tensors, key=lambda key: (places[tensors[key].dtype], key))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for key in order:
        start, end = end, end + tensors[key].numel() * tensors[key].element_size()
        shape = list(tensors[key].shape)
        dtype = entries[str(tensors[key].dtype)]["dtype"]
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text, order


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
