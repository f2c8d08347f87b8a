"""Pairs of tiny models with LoRAs for them, for the checks of lists for two models."""

from contextlib import contextmanager
from functools import cache

import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_inside import NODES, chained, load_model, patched, run, weights_of, write_lora

TIES = {"method": "ties", "density": 0.4}
LINEAR = {"method": "linear"}
NAMES = ("style_high_noise", "style_low_noise", "char", "ink", "wash_low_noise")


@cache
def low_of(name):
    """A model of the same architecture with other weights."""
    folder, prefix = ("checkpoints", "model.diffusion_model.") if name == "sd15" else ("diffusion_models", "")
    path = folder_paths.get_full_path_or_raise(folder, f"tiny_{name}.safetensors")
    state = comfy.utils.load_torch_file(path, safe_load=True)
    state = {key: tensor for key, tensor in state.items() if key.startswith(prefix)}
    other = {key: tensor * 0.9 if tensor.ndim > 1 else tensor for key, tensor in state.items()}
    return comfy.sd.load_diffusion_model_state_dict(
        comfy.utils.state_dict_prefix_replace(other, {prefix: ""})
    )


def pair(name="wan"):
    """``(high, low, CLIP or None)``."""
    model, clip = load_model(name)
    return model, low_of(name), clip


def files(name="wan", names=NAMES):
    """LoRA files of several ranks, on all or some of the layers."""
    return [
        write_lora(
            f"{name}_{each}", name, 2 + 2 * seed % 6, 4 if seed % 2 else None, seed, every=1 + seed % 2
        )
        for seed, each in enumerate(names)
    ]


def rows(name="wan"):
    """``(the list for two models, what is on the first, what is on the second)`` as ``(file, s, clip)``."""
    style, style_low, char, ink, wash = files(name)
    strengths = {
        style: (0.8, 0.5),
        style_low: (0.7, 0.6),
        char: (-0.6, 0.9),
        ink: (0.5, -0.4),
        wash: (1.1, 0.3),
    }

    def row(file, more=""):
        return f"<lora:{file}:{strengths[file][0]}:{strengths[file][1]}{more}>"

    text = [row(style), row(char, ":blocks=rest:0.5 attn:1"), row(style_low), row(ink, ":on=high"), row(wash)]
    high = [text[0], text[1], text[3]]
    low = [text[1], text[2], text[4]]
    return "\n".join(text), "\n".join(high), "\n".join(low)


def both(text, name="wan", method=TIES, **inputs):
    """The outputs of the loader with two models, by name, and what it says."""
    high, low, clip = pair(name)
    given = {"model": high, "model_low": low, "clip": clip, "loras": text, "method": method, **inputs}
    with torch.inference_mode():
        done = NODES["LoraAlloyLoader"].execute(**given)
    outputs = [output.display_name for output in NODES["LoraAlloyLoader"].define_schema().outputs]
    return dict(zip(outputs, done.result, strict=True)), done.ui.as_dict()["text"][0]


def alone(model, text, clip=None, method=TIES, **inputs):
    """The weights that a node with one model patches in it."""
    return patched(run("LoraAlloyLoader", model=model, clip=clip, loras=text, method=method, **inputs)[0])


def chain_of(model, listed):
    """The weights after one Load LoRA for each ``(file, strength)``."""
    return weights_of(chained(model, None, [(file, strength, 0) for file, strength in listed])[0], None)


@contextmanager
def refused(*says):
    """A MergeError with all of these words, as the user sees it."""
    try:
        yield
    except ValueError as error:
        assert all(word in str(error) for word in says), str(error)
    else:
        raise AssertionError(f"not refused: {says}")
