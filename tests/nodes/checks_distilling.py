"""Checks of distilling in ComfyUI: what is kept, and that MODEL stays as it was."""

import threading
import time
from importlib import import_module

import comfy.model_management
import comfy.sample
import torch
from comfy_inside import BASE, LORAS, check, key_names, load_model, merge_ops, run
from learning_inside import PACK, SMALL, assert_as_before, fresh, record, state, text, write
from safetensors.torch import save_file

stopping = import_module(PACK + "nodes.model.stopping")


@check
def distilling_keeps_more_than_linear():
    """Each LoRA's share beside linear's on the node; the result is patched, and MODEL is as it was."""
    model, clip = fresh()
    recording = record()
    before = state(model), state(clip)
    lora, new_model, new_clip, report, *_ = run(
        "LoraAlloyDistill", recording=recording, steps=20, batch=6, rank=8, seed=1, learning_rate=0.01
    )
    assert_as_before(model, before[0], objects=False)
    assert_as_before(clip, before[1], objects=False)
    linear = recording.measure(recording.merge("linear", 1.0, None))
    kept = recording.measure(lora.merged)
    assert kept.mean > linear.mean + 0.05, (kept, linear)
    for name, share in kept.loras.items():
        line = next(line for line in report.splitlines() if line.startswith(f"{name}:"))
        assert ("did not help" in line) == (share < linear.loras[name] + 0.005), (line, kept, linear)
    assert lora.merged.request.learned["settings"]["steps"] == 20
    assert new_model.patches and new_model.model is model.model and new_clip is not clip
    with_model = import_module(PACK + "nodes.model.learning.host").Applied(new_model, new_clip)
    assert abs(recording.measure(with_model).mean - kept.mean) < 1e-3
    path = run("LoraAlloySave", lora=lora, filename_prefix="loras/distilled")[0]
    saved = merge_ops.load(BASE / "output" / path)
    assert saved.layers and max(layer.rank for layer in saved.layers.values()) <= 8


@check
def training_puts_the_same_objects_back():
    """Weights are normal tensors of the same memory while something is trained, whatever ends it."""
    model, _ = fresh()
    host = record().host
    with torch.inference_mode():
        with host.applied(None):
            before = state(model)
            for ends in (None, KeyError, comfy.model_management.InterruptProcessingException):
                try:
                    with host.training():
                        weights = dict(model.model.diffusion_model.named_parameters())
                        assert not any(weight.is_inference() for weight in weights.values())
                        places = {f"diffusion_model.{name}": w.data_ptr() for name, w in weights.items()}
                        assert all(before[name][1] == place for name, place in places.items())
                        assert comfy.model_management.in_training
                        assert not torch.is_inference_mode_enabled()
                        if ends:
                            raise ends
                except (KeyError, comfy.model_management.InterruptProcessingException):
                    pass
                assert torch.is_inference_mode_enabled()
                assert_as_before(model, before)


@check
def text_encoders_are_distilled():
    """Their layers are recorded from the prompts, clip skip included, and trained by the same code."""
    model, clip = fresh()
    clip = clip.clone()
    clip.clip_layer(-2)
    for seed, name in enumerate(("text_a", "text_b")):
        stems = [named for key, named in key_names(model, clip).items() if "encoder.layers.10." in key]
        assert len(stems) == 6, stems
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for stem, (rows, columns) in stems:
            tensors[f"{stem}.lora_up.weight"] = torch.randn(rows, 2, generator=generator) * 0.3
            tensors[f"{stem}.lora_down.weight"] = torch.randn(2, columns, generator=generator) / columns**0.5
        save_file(tensors, LORAS / f"{name}.safetensors")
    loras = "<lora:text_a:1:prompt=a cat|a red cat|one>\n<lora:text_b:1:prompt=ink|ink and a pen|two>"
    recording, report = run("LoraAlloyRecord", model=model, clip=clip, loras=loras, **SMALL)
    assert list(recording.host.modules) == ["denoiser", "clip_l"] and "clip_l" in report
    before = state(clip)
    lora, _, new_clip, report, *_ = run(
        "LoraAlloyDistill", recording=recording, steps=4, batch=2, learning_rate=0.01
    )
    assert_as_before(clip, before, objects=False)
    assert new_clip.patcher.patches.keys() == clip_keys(lora, recording), "nothing else is patched"
    kept, linear = recording.measure(lora.merged), recording.measure(recording.merge("linear", 1.0, None))
    means = [sum(each.modules["clip_l"].values()) / 2 for each in (kept, linear)]
    assert means[0] >= means[1] - 1e-6, means
    assert f"clip_l: {100 * means[0]:.0f} %" in report, (report, means)


def clip_keys(lora, recording):
    return {recording.fitted.clip[name].key for name in lora.merged.layers}


@check
def streamed_models_are_loaded_again():
    """A model whose weights ComfyUI streams is left alone: a copy that stays in place is recorded."""
    model, clip = (part.clone() for part in fresh())
    for patcher in (model, clip.patcher):  # as on a GPU; without one ComfyUI makes no such model
        patcher.is_dynamic = lambda: True
    host = run("LoraAlloyRecord", model=model, clip=clip, loras=text(), **SMALL)[0].host
    assert host.model.model is not model.model and not host.model.is_dynamic()
    assert host.clip.cond_stage_model is host.clip.patcher.model is not clip.cond_stage_model
    for mine, given in ((host.model, model), (host.clip.patcher, clip.patcher)):
        weights = given.model.state_dict()
        copied = mine.model.state_dict()
        other = [
            name
            for name in weights
            if not torch.equal(weights[name], copied[name])
            and "text_projection" not in name  # the checkpoint lacks it, and so it is whatever memory held
        ]
        assert weights.keys() == copied.keys() and not other, other[:3]
    model.cached_patcher_init = None
    try:
        run("LoraAlloyRecord", model=model, clip=clip, loras=text(), **SMALL)
    except merge_ops.MergeError as error:
        assert "--disable-dynamic-vram" in str(error)
    else:
        raise AssertionError("a streamed model was recorded")


@check
def cancelling_keeps_nothing():
    """The cancel button ends a training and a recording at once, and the model is as before."""
    model, clip = fresh()
    recording = record()
    before = state(model), state(clip)
    for node, inputs in (
        ("LoraAlloyDistill", {"recording": recording, "steps": 1000, "batch": 2}),
        ("LoraAlloyRecord", {"model": model, "clip": clip, "loras": text(), **SMALL, "steps": 500}),
    ):
        timer = threading.Timer(3, comfy.model_management.interrupt_current_processing)
        timer.start()
        try:
            run(node, **inputs)
        except comfy.model_management.InterruptProcessingException:
            pass
        else:
            raise AssertionError(f"{node} went on")
        finally:
            timer.join()
        assert_as_before(model, before[0], objects=False)
        assert_as_before(clip, before[1], objects=False)


@check
def stopping_keeps_the_best_so_far():
    """As the button does it: from another thread."""
    recording, told = record(), []

    def stop_it():
        while not told or not told[-1]:
            time.sleep(0.5)
            told.append(stopping.stop("None"))

    thread = threading.Thread(target=stop_it)
    thread.start()
    lora, _, _, report, *_ = run("LoraAlloyDistill", recording=recording, steps=1000, batch=2, rank=4)
    thread.join()
    assert told[-1] == 1 and "stopped after" in report, report
    assert recording.measure(lora.merged).mean >= recording.measure(recording.merge("linear", 1.0, None)).mean
    assert stopping.stop() == 0, "nothing is running any more"


def conditions(name):
    """Conditioning for a model without a text encoder, as some node of another pack would make it."""
    sizes = {"flux": (96, 64), "sd3": (96, 64), "wan": (4096, 0)}
    width, pooled = sizes[name]
    generator = torch.Generator().manual_seed(4)
    more = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
    return [[torch.randn(1, 12, width, generator=generator), more]]


def merged_in_place(name="flux"):
    """Slices, swapped halves and blocks that add in place: a student is what a patched model is."""
    learning = import_module(PACK + "merge_ops.learning")
    host_of = import_module(PACK + "nodes.model.learning.host").ComfyHost
    fit = import_module(PACK + "nodes.model.places.fitting").fit_to_model
    sampling = import_module(PACK + "nodes.model.learning.sampling")
    model, _ = load_model(name)
    files = [f"place_{name}_{seed}" for seed in (1, 2)]
    for seed, file in enumerate(files):
        write(file, model, seed, 0.1)
    with torch.inference_mode():
        loras = [merge_ops.load(LORAS / f"{file}.safetensors") for file in files]
        host = host_of(model, None, fit(loras, model, None))
        condition = conditions(name)

        def run_it(*_):
            latent = sampling.empty_latent(host.model_now, 64, 64)
            noise = comfy.sample.prepare_noise(latent, 1)
            comfy.sample.sample(
                host.model_now, noise, 2, 1.0, "euler", "normal", condition, condition, latent, seed=1
            )

        recording = learning.record(host, host.fitted.loras, run_it, keep=run_it, together=run_it)
        linear = merge_ops.merge(host.fitted.loras)
        seen = []
        merged = learning.distill(
            recording, host, host.fitted.loras, steps=4, batch=2, learning_rate=1e-3, start="linear",
            progress=lambda now: seen.append(now.retention),
        )  # fmt: skip
        kept = learning.retention(recording, host, merged)
        last = next(found for found in reversed(seen) if found is not None)
        best = max((found for found in seen if found), key=lambda found: found.mean)
        assert abs(best.mean - kept.mean) < 1e-3 * max(1, abs(kept.mean)), (best, kept, last)
        rest = {layer for layer in linear.layers if host.module_of(layer) is None}
        assert rest <= {"diffusion_model.pos_embed"}, rest  # a bare parameter


for _name in ("flux", "sd3", "wan"):

    def students_are_patched_models(name=_name):
        """Slices, swapped halves and blocks that add in place: a student is what a patched model is."""
        merged_in_place(name)

    check(students_are_patched_models)
