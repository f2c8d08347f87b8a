"""What of each spelling meets the modules of a diffusers model, by ``load(path, architecture=...)``.

Full-size key lists with factors of rank 1; what stock diffusers makes of the same file is the oracle.
"""

import re

import torch

from merge_ops import MergeError
from merge_ops.formats import from_tensors
from merge_ops.formats.converted import as_diffusers_names
from merge_ops.names.parts import flat_name
from merge_ops.names.recognise import guess
from tests.architectures import keys
from tests.architectures.configs import DIFFUSERS
from tests.architectures.diffusers_models import pipeline_class

# the blocks, without those of small refiners and embedders
_BLOCK = re.compile(r"(blocks|layers|refiner)\.\d+\.")
_FLAT_BLOCK = re.compile(r"(blocks|layers|refiner)_\d")
_UNETS = ("sd1", "sd2", "sdxl")  # stock returns their alphas apart; tests/models compares those
_MAIN = re.compile(r"^(double_blocks|single_blocks)\.\d+\.")
# stock diffusers forgets the alpha of these in kohya's files of Flux
_WITHOUT_ALPHA = ("norm_out_linear", "proj_out")


def file_of(spelling, stems, alpha=0.5, seed=0):
    """A state dict in one spelling, rank 1, at half strength where the spelling has alpha."""
    random, tensors = torch.Generator().manual_seed(seed), {}
    for stem, (_, shape) in stems.items():
        up, down = keys.sizes(shape, 1)
        tensors[f"{stem}{spelling.up}"] = torch.randn(up, generator=random)
        tensors[f"{stem}{spelling.down}"] = torch.randn(down, generator=random)
        if spelling.alpha:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


def count(architecture):
    """``{spelling: (modules in the list, modules that meet diffusers', 'stock' or '')}``."""
    theirs = {
        flat_name(f"unet.{name}"): shape for name, shape in keys.shapes(architecture, "diffusers").items()
    }
    counts = {}
    for spelling in keys.spellings(architecture):
        every = keys.stems(architecture, spelling)
        blocks = {stem: entry for stem, entry in every.items() if _BLOCK.search(entry[0])}
        main = {stem: entry for stem, entry in every.items() if _MAIN.search(entry[0])}
        shared = {stem: entry for stem, entry in every.items() if flat_name(f"unet.{entry[0]}") in theirs}
        for stems in (every, blocks, main, shared):  # diffusers' converters refuse what they do not know
            if len(stems) < len(every) / 2:
                continue
            tensors = file_of(spelling, stems, 1.0 if architecture in _UNETS else 0.5)
            ours = _read(tensors, theirs)
            if ours:
                break
        stock = "stock diffusers" if ours and _agrees(architecture, tensors, ours) else ""
        counts[spelling.label] = (len(every), len(stems) if ours else 0, stock)
    return counts


def _read(tensors, theirs):
    """Our layers by flat name, or None if one of them is not a module of the model."""
    lora = from_tensors("file", tensors)
    found = guess(lora)
    assert found is not None, next(iter(lora.layers))
    try:
        named = as_diffusers_names(lora, found.name)
    except MergeError:
        return None
    layers = {flat_name(name): layer for name, layer in named.layers.items()}
    fits = all(theirs.get(name, ())[:2] == layer.weight_shape[:2] for name, layer in layers.items())
    return layers if fits else None


def _agrees(architecture, tensors, ours):
    """True if stock diffusers reads the blocks of the file too, and then with the same deltas."""
    pipeline = pipeline_class(architecture)
    if not hasattr(pipeline, "lora_state_dict"):
        return False
    alphas = {}
    try:
        result = pipeline.lora_state_dict(
            dict(tensors), **({"return_alphas": True} if "flux" == architecture else {})
        )
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return False
    if isinstance(result, tuple):
        result, alphas = result[0], result[1] or {}
    # what has no component, or a trainer's prefix still, was not converted, and diffusers leaves it out
    result = {
        key: value
        for key, value in result.items()
        if key.startswith(("transformer.", "unet.")) and not key.startswith("transformer.lora_")
    }
    if not result:
        return False
    stock = from_tensors("stock", {**result, **{key: torch.tensor(float(a)) for key, a in alphas.items()}})
    stock = {flat_name(name): layer for name, layer in stock.layers.items()}
    if not stock.keys() <= ours.keys() or any(map(_FLAT_BLOCK.search, ours.keys() - stock.keys())):
        return False
    for name, layer in ((name, ours[name]) for name in stock):
        if name in _WITHOUT_ALPHA and any(key.endswith(".alpha") for key in tensors):
            continue
        probe = torch.linspace(-1, 1, layer.down.shape[1])
        got, wanted = (la.scale * (la.up @ (la.down @ probe)) for la in (layer, stock[name]))
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4), name
    return True


def all_counts():
    """The counts of all architectures."""
    return {architecture: count(architecture) for architecture in DIFFUSERS}
