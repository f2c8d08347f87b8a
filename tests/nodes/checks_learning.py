"""Checks of recording and measuring in ComfyUI, and of merges with a recording."""

import json

import comfy.sample
import comfy.sd
import comfy.utils
import torch
from comfy_inside import LORAS, NODES, assert_close, check, load_model, merge_ops, patched, run
from learning_inside import PROMPTS, SMALL, assert_as_before, fresh, record, state, text
from safetensors.torch import load_file, save_file


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
    """Calibrated, and the strength that keeps most; in both merge nodes, in any order of the stack."""
    recording, (model, clip) = record(), fresh()
    moments = recording.moments()
    wanted = recording.merge("calibrated", 1.0, moments)
    (method,) = run("LoraAlloyMethod", method={"method": "calibrated"})
    stack = run("LoraAlloyStack", loras="\n".join(reversed(text().splitlines())))[0]
    for inputs in ({}, {"auto_strength": True}):
        lora, report, *_ = run("LoraAlloyMerge", stack=stack, method=method, recording=recording, **inputs)
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
