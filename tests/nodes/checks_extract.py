"""Checks of Extract LoRA: what it finds makes the base the tuned model again; names of every model."""

import logging
import math
import sys
from importlib import import_module
from pathlib import Path

import comfy.model_patcher
import comfy.sample
import torch
from comfy_inside import (
    BASE,
    LORAS,
    assert_close,
    chained,
    check,
    comfy,
    folder_paths,
    load_model,
    merge_ops,
    patched,
    run,
    weights_of,
    write_lora,
)
from packed_weights import load_quantised
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parents[1] / "architectures"))

import comfyui_models
from configs import COMFYUI

CPU = torch.device("cpu")
NamesInFiles = import_module("alloy_pack.merge_ops.extracting.layer_names").NamesInFiles
module_names = import_module("alloy_pack.merge_ops.saving.stems").module_names
core = import_module("alloy_pack.nodes.model.core")
read_whole_model = import_module("alloy_pack.nodes.model.places.whole_models").read_whole_model


class Listener(logging.Handler):
    """What ComfyUI logs while a file is loaded: it only logs the keys that it does not know."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def loaded_by_core(model, clip, path):
    """A file through core's own loader; every key of it must be known."""
    listener = Listener()
    logging.getLogger().addHandler(listener)
    try:
        lora = comfy.utils.load_torch_file(str(path), safe_load=True)
        patched_model, patched_clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    finally:
        logging.getLogger().removeHandler(listener)
    lost = [line for line in listener.lines if "not loaded" in line or "NOT LOADED" in line]
    assert not lost, lost[:3]
    return patched_model, patched_clip


def checkpoint():
    return Path(folder_paths.get_full_path_or_raise("checkpoints", "tiny_sd15.safetensors"))


def write_tuned(rank, name="tuned", scale=0.02, only=""):
    """A checkpoint that differs from the tiny one in all weights; by a rank, or fully without one."""
    tensors = load_file(checkpoint())
    generator = torch.Generator().manual_seed(7)
    for key, weight in tensors.items():
        if "first_stage_model" in key or not key.endswith((".weight", ".bias")) or only not in key:
            continue
        size = weight.float().std().nan_to_num(0.0).clamp(min=0.01) * scale
        if rank is None or weight.ndim < 2:
            change = torch.randn(weight.shape, generator=generator)
        else:
            up = torch.randn(weight.shape[0], rank, generator=generator)
            down = torch.randn(rank, weight[0].numel(), generator=generator)
            change = (up @ down).view(weight.shape) / rank**0.5
        tensors[key] = (weight.float() + size * change).to(weight.dtype)
    path = BASE / "models" / "checkpoints" / f"{name}.safetensors"
    path.unlink(missing_ok=True)
    save_file(tensors, path)
    return path


def load(path):
    return comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False)[:2]


def sampled(model, clip):
    """What four steps make of one noise, with the prompt's own encoding."""
    with torch.inference_mode():
        positive = clip.encode_from_tokens_scheduled(clip.tokenize("an ink fox"))
        latent = torch.zeros(1, 4, 8, 8)
        noise = comfy.sample.prepare_noise(latent, 3)
        made = comfy.sample.sample(
            model, noise, 4, 1.0, "euler", "normal", positive, positive, latent, disable_pbar=True, seed=3
        )
    comfy.model_management.unload_all_models()
    return made.float()


def distance(a, b):
    return float((a - b).norm())


@check
def extract_gives_back_a_loaded_lora():
    """Of a model with a LoRA on it and the same without; through LORA_MODEL and through core's loader."""
    model, clip = load_model("sd15")
    rows = [(write_lora("known", "sd15", 4, 2, 1), 0.8, 0.8)]
    tuned_model, tuned_clip = chained(model, clip, rows)
    lora, report = run(
        "LoraAlloyExtract", tuned=tuned_model, base=model, tuned_clip=tuned_clip, base_clip=clip, rank=8
    )
    assert "keeps all of the difference" in report, report
    expected = weights_of(tuned_model, tuned_clip)
    del expected["clip_l.transformer.text_projection.weight"]  # which the checkpoint lacks; not compared
    applied = run("LoraAlloyApply", lora=lora, strength_model=1.0, strength_clip=1.0, model=model, clip=clip)[
        :2
    ]
    assert_close(weights_of(*applied), expected, "Apply Merged LoRA", 1e-4)
    core = comfy.sd.load_lora_for_models(model, clip, dict(lora.items()), 1.0, 1.0)
    assert_close(weights_of(*core), expected, "core", 1e-4)


@check
def extract_from_checkpoints():
    """Convolutions, norms, biases, the CLIP: the saved file, loaded by core, makes the tuned model."""
    tuned = load(write_tuned(4))
    base = load(checkpoint())
    lora, report = run(
        "LoraAlloyExtract", tuned=tuned[0], base=base[0], tuned_clip=tuned[1], base_clip=base[1], rank=8
    )
    assert "keeps all of the difference" in report or "rank 8 keeps 99" in report, report
    path = LORAS / "extracted.safetensors"
    path.unlink(missing_ok=True)
    merge_ops.save(lora.merged, path, dtype=torch.float32, format="kohya", stems=lora.stems)
    check_equal(path, tuned, base)


def check_equal(path, tuned, base, tolerance=2e-3):
    """The base with a file is the tuned model, in every weight that the two have."""
    got = loaded_by_core(*base, path)
    for part, want in ((got[0], tuned[0]), (got[1].patcher, tuned[1].patcher)):
        weights = patched(part)
        plain = want.model.state_dict()
        before = part.model.state_dict()
        for key, weight in plain.items():
            if "text_projection" in key or "logit_scale" in key or not weight.is_floating_point():
                continue  # which the file does not hold
            now = weights.get(key, before[key]).float()
            moved = float((weight.float() - before[key].float()).abs().max())
            off = float((now - weight.float()).abs().max())
            assert off <= 0.05 * moved + tolerance * float(weight.float().abs().max()), (key, off, moved)


@check
def extract_from_files():
    """The same from the files by the library, whose names are the saved file's own."""
    path = LORAS / "from_files.safetensors"
    path.unlink(missing_ok=True)
    tuned = write_tuned(4)
    extracted = merge_ops.extract(tuned, checkpoint(), rank=8)
    merge_ops.save(extracted, path, dtype=torch.float32)
    assert extracted.found.held > 0.98 and len(extracted.layers) > 200
    check_equal(path, load(tuned), load(checkpoint()))


@check
def extract_images_agree_within_the_energy():
    """Of a model that was tuned in full: the more is held, the closer are the images to the tuned model's."""
    tuned, base = load(write_tuned(None, scale=0.03)), load(checkpoint())
    wanted, before = sampled(*tuned), sampled(*base)
    assert distance(wanted, before) > 0.005 * float(wanted.norm())
    left = []
    for energy in (0.5, 0.9, 0.99, 0.9999):
        lora, _ = run(
            "LoraAlloyExtract", tuned=tuned[0], base=base[0], tuned_clip=tuned[1], base_clip=base[1],
            rank=4096, energy=energy,
        )  # fmt: skip
        assert lora.merged.found.held >= energy - 1e-4
        got = run(
            "LoraAlloyApply", lora=lora, strength_model=1.0, strength_clip=1.0, model=base[0], clip=base[1]
        )[:2]
        left.append(distance(sampled(*got), wanted) / distance(before, wanted))
        # the error of the weights is the root of what is not held; an image is a smooth function of them
        assert left[-1] <= 1.5 * (1 - energy) ** 0.5 + 0.01, (energy, left)
    assert left == sorted(left, reverse=True), left


@check
def extract_of_other_models():
    """Every tiny model of ComfyUI's: a LoRA on it comes back through the names of its own maps."""
    for name in ("sdxl", "flux", "sd3", "wan"):
        model, _ = load_model(name)
        tuned, _ = chained(model, None, [(write_lora(f"{name}_known", name, 2, 2, 1, every=3), 1.0, 1.0)])
        lora, report = run("LoraAlloyExtract", tuned=tuned, base=model, rank=8)
        assert "keeps " in report
        core = comfy.sd.load_lora_for_models(model, None, dict(lora.items()), 1.0, 1.0)[0]
        assert_close(patched(core), patched(tuned), name, 1e-3)


@check
def extract_refuses():
    """One text encoder, a typo, one model twice, two kinds of model: one sentence each."""
    model, clip = load_model("sd15")
    for inputs, words in (
        ({"tuned_clip": clip}, "text encoders of both models"),
        ({"rnak": 3}, "did you mean 'rank'"),
        ({"base": load_model("flux")[0]}, "give a model and its own base"),
        ({}, "are the same in all"),
    ):
        try:
            run("LoraAlloyExtract", **{"tuned": model, "base": model, **inputs})
        except merge_ops.MergeError as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"{inputs} was taken")


for _name in COMFYUI:

    @check
    def extracted_names(architecture=_name):
        """What a checkpoint's layers are called in a file is known to stock ComfyUI, all of them."""
        model = comfyui_models.empty_model(architecture)
        whole = read_whole_model("tuned", comfy.model_patcher.ModelPatcher(model, CPU, CPU))
        names = NamesInFiles(whole)
        layers = {}
        for name, weight in whole.weights.items():
            if weight.layout is not None:
                up, down = torch.empty(weight.shape[0], 1), torch.empty(1, math.prod(weight.shape[1:]))
                layers[names.of(name, weight)] = merge_ops.LowRank(
                    up, down, 1.0, weight.layout, weight.shape[2:], names.key(name, weight)
                )
        lora = merge_ops.Lora("tuned", layers)
        stems = module_names(layers, "kohya", [lora])
        bare = {names.of(name, weight) for name, weight in whole.weights.items() if weight.is_bare}
        stems |= {name: name for name in bare & stems.keys()}
        known = comfy.lora.model_lora_keys_unet(model, {})
        unknown = [name for name, stem in stems.items() if stem not in known]
        assert len(layers) > 100 and not unknown, (len(unknown), unknown[:5])
        assert len(set(stems.values())) == len({name.removesuffix(".bias") for name in layers})


@check
def extract_from_quantised_weights():
    """fp8 with scales, as ComfyUI loads it: its numbers are read, and what is only rounding is left out."""
    quantised, _ = load_quantised("float8_e4m3fn")
    model, _ = load_model("flux")
    tuned, _ = chained(quantised, None, [(write_lora("flux_known", "flux", 2, 2, 1, every=4), 1.0, 1.0)])
    with torch.inference_mode():
        lora, report = run("LoraAlloyExtract", tuned=tuned, base=quantised, rank=8)
        assert "keeps " in report, report
        applied = comfy.sd.load_lora_for_models(quantised, None, dict(lora.items()), 1.0, 1.0)[0]
        stored = core.read_stored_weights(quantised)
        for key in tuned.patches:
            want, got = (
                core.with_patches(part, key, core.hand_to_patch(stored[key])).float()
                for part in (tuned, applied)
            )
            assert torch.allclose(want, got, atol=1e-3 * float(want.abs().max())), key
        both = run("LoraAlloyExtract", tuned=tuned, base=model, rank=8)
    assert set(lora.merged.layers) <= set(both[0].merged.layers)
    ignored = both[0].merged.found.ignored
    assert ignored and all("rounding" in why for why in ignored.values()), both[1]
