"""Checks of recording, measuring and distilling in ComfyUI, on tiny models with random LoRAs."""

import sys
import threading
import time

import comfy.lora
import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_inside import (
    BASE,
    LORAS,
    NODES,
    assert_close,
    check,
    key_names,
    load_model,
    merge_ops,
    patched,
    run,
)
from safetensors.torch import load_file, save_file

PACK = "alloy_pack."
stopping = sys.modules[PACK + "nodes.model.stopping"]
SMALL = {"width": 64, "height": 64, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}
PROMPTS = {"learn_a": ("a cat",), "learn_b": ("ink on paper", "ink: a boat")}


def write(name, model, seed, size=0.2, only=""):
    """A LoRA of rank 4 on each fourth layer of the diffusion model, or on those whose name has a part."""
    generator = torch.Generator().manual_seed(seed)
    unet = [(stem, shape) for key, (stem, shape) in key_names(model, None).items()]
    names = [(stem, shape) for stem, shape in sorted(unet) if only in stem][:: 1 if only else 4]
    tensors = {}
    for stem, shape in names:
        up, down = (shape[0], 4), (4, *shape[1:])
        up = up if len(shape) == 2 else (*up, *(1 for _ in shape[2:]))
        fan = max(1, torch.Size(shape[1:]).numel())
        tensors[f"{stem}.lora_up.weight"] = torch.randn(up, generator=generator) * size
        tensors[f"{stem}.lora_down.weight"] = torch.randn(down, generator=generator) / fan**0.5
    save_file(tensors, LORAS / f"{name}.safetensors")


_made = {}


def fresh():
    """``(model, clip)`` loaded in inference mode, as nodes are run, so that all weights are inference tensors."""
    if not _made:
        path = folder_paths.get_full_path_or_raise("checkpoints", "tiny_sd15.safetensors")
        with torch.inference_mode():
            _made["sd15"] = comfy.sd.load_checkpoint_guess_config(path, output_vae=False)[:2]
        model = _made["sd15"][0]
        write("learn_a", model, 1, 0.25, only="attn1")
        write("learn_b", model, 2, 0.15, only="attn2")
        assert all(weight.is_inference() for weight in model.model.parameters())
    return _made["sd15"]


def text(strengths=(1, 1)):
    rows = zip(PROMPTS.items(), strengths, strict=True)
    return "\n".join(f"<lora:{name}:{s}:0:prompt={'|'.join(own)}>" for (name, own), s in rows)


def record(**inputs):
    """The recording of two LoRAs, made once; with inputs, another one."""
    if inputs or "recording" not in _made:
        model, clip = fresh()
        made = run("LoraAlloyRecord", model=model, clip=clip, loras=text(), **{**SMALL, **inputs})
        if inputs:
            return made[0]
        _made["recording"] = made[0]
    return _made["recording"]


def state(part):
    """Every weight: its object, where it lies, and its bits."""
    module = getattr(part, "patcher", part).model
    return {
        name: (id(weight), weight.data_ptr(), weight.requires_grad, weight.detach().clone())
        for name, weight in module.named_parameters()
    }


def assert_as_before(part, before, objects=True):
    """The same bits in the same memory, the same objects, and no hook left."""
    module = getattr(part, "patcher", part).model
    after = state(part)
    assert after.keys() == before.keys()
    for name, (number, place, needs, bits) in before.items():
        assert torch.equal(bits, after[name][3]), name
        assert (place, needs) == after[name][1:3], name
        assert not objects or number == after[name][0], name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert not getattr(part, "patcher", part).patches
    assert not comfy.model_management.in_training


@check
def calls_are_recorded_and_counted():
    """One sample for each prompt, step and half of the guidance; nothing of the model changes."""
    model, clip = fresh()
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model, clip.patcher])
    before = state(model), state(clip)
    calls = []
    hook = model.model.diffusion_model.register_forward_hook(lambda *_: calls.append(1))
    record(seed=3)
    hook.remove()
    recording = record(seed=0).recording
    counts = {role: sum(s.role == role for s in recording.samples) for role in (0, 1, "keep", "together")}
    assert counts == {0: 4, 1: 8, "keep": 4, "together": 8}, counts
    sampled = 2 * (1 + 2 + 1 + 2)
    assert sampled < len(calls) < 2 * sampled, len(calls)  # and the base's answers to what is held out
    assert {s.module for s in recording.samples} == {"denoiser"}, "their text encoder layers are off"
    assert [lora.prompts for lora in recording.loras] == list(PROMPTS.values())
    assert recording.keep_prompts == ("",)
    assert recording.together_prompts == ("a cat, ink on paper", "a cat, ink: a boat")
    assert_as_before(model, before[0], objects=False)
    assert_as_before(clip, before[1], objects=False)


@check
def teachers_are_what_core_loads():
    """The recorded answers are those of the model with ComfyUI's own Load LoRA."""
    model, clip = fresh()
    recording = record(seed=5).recording
    with torch.inference_mode():
        lora = comfy.utils.load_torch_file(str(LORAS / "learn_b.safetensors"), safe_load=True)
        stock, stock_clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 0.0)
        answers = []
        hook = stock.model.diffusion_model.register_forward_hook(
            lambda _m, args, out: answers.append((args[0].clone(), out.clone()))
        )
        latent = torch.zeros(1, 4, 8, 8)
        against = stock_clip.encode_from_tokens_scheduled(stock_clip.tokenize(""))
        for number, prompt in enumerate(PROMPTS["learn_b"]):
            condition = stock_clip.encode_from_tokens_scheduled(stock_clip.tokenize(prompt))
            noise = comfy.sample.prepare_noise(latent, 5 + number)
            comfy.sample.sample(
                stock, noise, 2, 4.0, "euler", "normal", condition, against, latent, seed=5 + number
            )
        hook.remove()
        wanted = [(x[i : i + 1], out[i : i + 1]) for x, out in answers for i in range(len(x))]
        recorded = [sample for sample in recording.samples if sample.role == 1]
        assert len(wanted) == len(recorded) == 8
        for sample in recorded:
            match = [out for x, out in wanted if torch.equal(x, sample.args[0])]
            assert any(torch.equal(out, sample.output) for out in match), "another answer than core's"


@check
def retention_of_what_is_known():
    """The base keeps nothing, a LoRA alone keeps itself; of a MODEL, of a LORA_MODEL, and of a list."""
    import json

    recording, (model, clip) = record(), fresh()
    lora = load_file(LORAS / "learn_a.safetensors")
    with torch.inference_mode():
        patched = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 0.0)[0]
    report, figures, image, best = run(
        "LoraAlloyMeasure", recording=recording, model=patched, lora=lora, methods="linear, ties",
        strengths="0, 1",
    )  # fmt: skip
    rows = json.loads(figures)
    assert set(rows) == {"linear", "linear at 0", "ties", "ties at 0", "the merged LoRA", "the model"}, rows
    assert all(abs(share) < 1e-6 for share in rows["linear at 0"]["loras"].values())
    for name in ("the merged LoRA", "the model"):
        assert abs(rows[name]["loras"]["learn_a"] - 1) < 1e-6, rows[name]
        assert rows[name]["loras"]["learn_b"] < 0.9
    assert "roughly" in report and "learn_a 100 %" in report, report
    assert image.shape[0] == 1 and image.shape[3] == 3 and 0 <= image.min() < image.max() <= 1
    listed = [name for name in rows if not name.startswith("the ")]
    title = max(listed, key=lambda name: rows[name]["mean"])
    asked = best.override()
    assert f"Best of the list: {title}" in report, (report, title)
    assert (asked.keywords["method"], asked.strength) == (title.split()[0], 0 if "at 0" in title else 1)


@check
def distilling_keeps_more_than_linear():
    """Each LoRA's share beside linear's on the node; the result is patched, and MODEL is as it was."""
    model, clip = fresh()
    recording = record()
    before = state(model), state(clip)
    lora, new_model, new_clip, report = run(
        "LoraAlloyDistill", recording=recording, steps=20, batch=6, rank=8, seed=1, learning_rate=0.01
    )
    assert_as_before(model, before[0], objects=False)
    assert_as_before(clip, before[1], objects=False)
    linear = recording.measure(recording.merge("linear", 1.0, None))
    kept = recording.measure(lora.merged)
    assert kept.mean > linear.mean + 0.05, (kept, linear)
    for name, share in kept.loras.items():
        line = next(line for line in report.splitlines() if line.startswith(f"{name}:"))
        assert ("did not help" in line) == (share <= linear.loras[name]), (line, kept, linear)
    assert lora.merged.request.learned["settings"]["steps"] == 20
    assert new_model.patches and new_model.model is model.model and new_clip is not clip
    with_model = sys.modules[PACK + "nodes.model.learning_host"].Applied(new_model, new_clip)
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
    lora, _, _, report = run("LoraAlloyDistill", recording=recording, steps=1000, batch=2, rank=4)
    thread.join()
    assert told[-1] == 1 and "stopped after" in report, report
    assert recording.measure(lora.merged).mean >= recording.measure(recording.merge("linear", 1.0, None)).mean
    assert stopping.stop() == 0, "nothing is running any more"


@check
def a_lora_without_a_prompt_is_named():
    """Its row, or trigger words in its file; an empty list is refused too."""
    model, clip = fresh()
    tensors = load_file(LORAS / "learn_a.safetensors")
    save_file(tensors, LORAS / "called.safetensors", {"ss_tag_frequency": '{"5_x": {"mia": 9, "red": 2}}'})
    made = run("LoraAlloyRecord", model=model, clip=clip, loras="<lora:called:1:0>", **SMALL)[0]
    assert made.recording.loras[0].prompts == ("mia",)
    for loras, says in (
        ("<lora:learn_a:1>\n<lora:called:1>", "learn_a needs a prompt"),
        ("<lora:learn_a:1>\n<lora:learn_b:1>", "learn_a, learn_b need a prompt"),
        ("# <lora:learn_a:1>", "no LoRA is switched on"),
    ):
        try:
            run("LoraAlloyRecord", model=model, clip=clip, loras=loras, **SMALL)
        except merge_ops.MergeError as error:
            assert says in str(error), str(error)
        else:
            raise AssertionError(f"not refused: {loras}")


@check
def another_model_is_refused():
    """A MODEL that was not recorded, and a stack that was not."""
    recording, (other, _) = record(), load_model("flux")
    try:
        run("LoraAlloyMeasure", recording=recording, model=other)
    except merge_ops.MergeError as error:
        assert "another model" in str(error)
    else:
        raise AssertionError("measured")
    assert NODES["LoraAlloyMeasure"].validate_inputs(methods="tise") is not True


@check
def merges_use_a_recording():
    """Calibrated, and the strength that keeps most; in both merge nodes, and whatever the order of the stack."""
    recording, (model, clip) = record(), fresh()
    moments = recording.moments()
    wanted = recording.merge("calibrated", 1.0, moments)
    (method,) = run("LoraAlloyMethod", method={"method": "calibrated"})
    stack = run("LoraAlloyStack", loras="\n".join(reversed(text().splitlines())))[0]
    for inputs in ({}, {"auto_strength": True}):
        lora, report = run("LoraAlloyMerge", stack=stack, method=method, recording=recording, **inputs)
        if inputs:
            assert "keeps most" in report, report
            assert recording.measure(lora.merged).mean >= recording.measure(wanted).mean - 1e-6
        else:
            for name in wanted.layers:
                assert torch.allclose(lora.merged.delta(name), wanted.delta(name), atol=1e-5), name
        one = run(
            "LoraAlloyLoader", model=model, clip=clip, loras=text(), method={"method": "calibrated"},
            recording=recording, **inputs,
        )  # fmt: skip
        assert_close(patched(one[0]), patched(_applied(model, clip, lora)), "the loader", 1e-4)
    for inputs, says in (
        ({"method": method}, "connect Record LoRAs"),
        ({"auto_strength": True}, "connect Record LoRAs"),
    ):
        try:
            run("LoraAlloyMerge", stack=stack, **inputs)
        except merge_ops.MergeError as error:
            assert says in str(error), str(error)
        else:
            raise AssertionError(f"not refused: {inputs}")


def _applied(model, clip, lora):
    return run("LoraAlloyApply", model=model, clip=clip, lora=lora, strength_model=1.0, strength_clip=1.0)[0]


def conditions(name):
    """Conditioning for a model without a text encoder, as some node of another pack would make it."""
    sizes = {"flux": (96, 64), "sd3": (96, 64), "wan": (4096, 0)}
    width, pooled = sizes[name]
    generator = torch.Generator().manual_seed(4)
    more = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
    return [[torch.randn(1, 12, width, generator=generator), more]]


def merged_in_place(name="flux"):
    """Slices, swapped halves and blocks that add in place: a student is what a patched model is."""
    learning = sys.modules[PACK + "merge_ops.learning"]
    host_of = sys.modules[PACK + "nodes.model.learning_host"].ComfyHost
    fit = sys.modules[PACK + "nodes.model.fitting"].fit_to_model
    sampling = sys.modules[PACK + "nodes.model.sampling"]
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
