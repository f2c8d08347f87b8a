"""Checks of recording, measuring and distilling LoRAs for two models that sample one after the other."""

import json

import comfy.sd
import comfy.utils
import torch
from comfy_inside import LORAS, NODES, check, run
from experts_inside import low_of, refused
from learning_inside import SMALL, assert_as_before, fresh, record, state, write

STEPS = 4
HOW = {**SMALL, "steps": STEPS}
LIST = (
    "<lora:dream_high_noise:1:0:prompt=a dream>\n<lora:dream_low_noise:0.8:0>\n"
    "<lora:learn_b:1:0:prompt=ink on paper>\n<lora:only_low:1:0:on=low:prompt=mist>"
)
_made = {}


def models():
    """``(high, low, CLIP)`` and the LoRA files of the list."""
    model, clip = fresh()
    if not _made:
        _made["low"] = low_of("sd15")
        for seed, name in enumerate(("dream_high_noise", "dream_low_noise", "only_low")):
            write(name, model, seed + 5, 0.2, only="attn1" if seed < 2 else "attn2")
    return model, _made["low"], clip


def recorded(**inputs):
    """The recording of the list with both models, made once; with inputs, another one."""
    if inputs or "recording" not in _made:
        model, low, clip = models()
        given = {"model": model, "model_low": low, "clip": clip, "loras": LIST, **HOW, **inputs}
        made = run("LoraAlloyRecord", **given)[0]
        if inputs:
            return made
        _made["recording"] = made
    return _made["recording"]


def seen_by(model):
    """A list that fills with the input and the answer of each call of a model, and what ends that."""
    calls = []
    module = model.model.diffusion_model
    hook = module.register_forward_hook(lambda _m, args, out: calls.append((args[0].clone(), out.clone())))
    return calls, hook.remove


def stock(model, clip, name, strength):
    lora = comfy.utils.load_torch_file(str(LORAS / f"{name}.safetensors"), safe_load=True)
    return comfy.sd.load_lora_for_models(model, clip, lora, strength, 0.0)[0]


def sampled_by_core(high, low, clip, prompt, switch):
    """What two KSampler (Advanced) nodes ask the second model, and what it answers."""
    from nodes import KSamplerAdvanced

    def encode(text):
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    empty = {"samples": torch.zeros(1, 4, 8, 8)}
    common = (STEPS, SMALL["cfg"], "euler", "normal", encode(prompt), encode(""))
    sampler = KSamplerAdvanced()
    (half,) = sampler.sample(high, "enable", 0, *common, empty, 0, switch, "enable")
    calls, stop = seen_by(low)
    sampler.sample(low, "disable", 0, *common, half, switch, 10000, "disable")
    stop()
    return [(x[i : i + 1], out[i : i + 1]) for x, out in calls for i in range(len(x))]


def assert_recorded(recording, role, wanted):
    """Each recorded call of a role is one that core made, with its answer."""
    samples = [sample for sample in recording.samples if sample.role == role]
    assert samples
    for sample in samples:
        match = [out for x, out in wanted if torch.equal(x, sample.args[0])]
        assert any(torch.equal(out, sample.output) for out in match), "another call than core's"


@check
def the_second_model_goes_on_where_the_first_one_ends():
    """As two KSampler (Advanced) nodes: with both halves of a pair, with neither, and for one side alone."""
    high, low, clip = models()
    recording = recorded()
    assert [e.lora.name for e in recording.entries] == ["dream_high_noise", "learn_b"]
    assert [e.lora.name for e in recording.low.entries] == ["dream_low_noise", "learn_b", "only_low"]
    assert recording.low.recording.loras[0].prompts == ("a dream",), "the pair has one prompt"
    assert recording.low.low is None
    with torch.inference_mode():
        pair = stock(high, clip, "dream_high_noise", 1.0), stock(low, clip, "dream_low_noise", 0.8)
        assert_recorded(recording.low.recording, 0, sampled_by_core(*pair, clip, "a dream", 2))
        alone = high, stock(low, clip, "only_low", 1.0)
        assert_recorded(recording.low.recording, 2, sampled_by_core(*alone, clip, "mist", 2))
        assert_recorded(recording.low.recording, "keep", sampled_by_core(high, low, clip, "", 2))
    counts = {role: sum(s.role == role for s in recording.recording.samples) for role in (0, 1, "keep")}
    assert counts == dict.fromkeys((0, 1, "keep"), 2 * 2), counts  # steps of the first half, and guidance


@check
def where_the_models_switch_is_the_users():
    """At least a step is left for each."""
    for switch, steps in ((0.0, 1), (0.75, 3), (1.0, 3)):
        recording = recorded(loras="<lora:learn_b:1:0:prompt=ink>", switch=switch)
        kept = [s for s in recording.recording.samples if s.role == 0]
        rest = [s for s in recording.low.recording.samples if s.role == 0]
        assert (len(kept), len(rest)) == (2 * steps, 2 * (STEPS - steps)), (switch, len(kept), len(rest))


@check
def one_model_is_recorded_as_before_and_nothing_is_left_on_either():
    """The same samples with and without the code for two; the weights of both models are as they were."""
    model, low, clip = models()
    before = [state(part) for part in (model, low, clip)]
    one, again = record(seed=11).recording, record(seed=11).recording
    assert one.sha256 == again.sha256
    recorded(seed=3)
    for part, bits in zip((model, low, clip), before, strict=True):
        assert_as_before(part, bits, objects=False)


@check
def distilling_trains_both_models():
    """Each keeps more than the sum, both are patched, and the report names them."""
    recording = recorded()
    lora, model, clip, report, lora_low, model_low = run(
        "LoraAlloyDistill", recording=recording, steps=40, seed=1
    )
    assert report.count("-noise model: distilled") == 2 and "both models: kept" in report, report
    for side, merged, patched in ((recording, lora, model), (recording.low, lora_low, model_low)):
        linear = side.measure(side.merge("linear", 1.0, None)).mean
        assert side.measure(merged.merged).mean > linear, report
        assert patched.model is side.model.model and patched.patches
    assert clip is not None
    text, figures, _, best = run(
        "LoraAlloyMeasure", recording=recording, lora=lora, lora_low=lora_low, model=model,
        model_low=model_low, methods="linear, even", strengths="1",
    )  # fmt: skip
    rows = json.loads(figures)
    assert rows.keys() == {"high", "low"}
    for side in rows.values():
        assert set(side) == {"linear", "even", "the merged LoRA", "the model"}
        assert abs(side["the merged LoRA"]["mean"] - side["the model"]["mean"]) < 1e-3, side
    means = {m: (rows["high"][m]["mean"] + rows["low"][m]["mean"]) / 2 for m in ("linear", "even")}
    assert best.method["method"] == max(means, key=means.get), means
    assert "high-noise model:" in text and "low-noise model:" in text and "for both" in text, text


@check
def merges_take_the_recording_of_both():
    """Load & Merge by calibrated, with the strength that each model keeps most at."""
    model, low, clip = models()
    with torch.inference_mode():
        done = NODES["LoraAlloyLoader"].execute(
            model=model, model_low=low, clip=clip, loras=LIST, method={"method": "calibrated"},
            recording=recorded(), auto_strength=True,
        )  # fmt: skip
    said = done.ui.as_dict()["text"][0]
    assert said.count("keeps most of the LoRAs") == 2, said
    assert done.result[0].patches and done.result[6].patches


@check
def what_cannot_be_is_refused():
    """One sentence each."""
    model, low, clip = models()
    given = {"model": model, "clip": clip, **HOW}
    with refused("model_low", "on=low"):
        run("LoraAlloyRecord", loras=LIST, **given)
    with refused("are one model"):
        run("LoraAlloyRecord", loras=LIST, model_low=model, **given)
    with refused("all LoRAs of the list are for the low-noise model"):
        run("LoraAlloyRecord", loras="<lora:dream_low_noise:1:0:prompt=x>", model_low=low, **given)
    with refused("low-noise model: only_low needs a prompt"):
        run("LoraAlloyRecord", loras="<lora:learn_b:1:0:prompt=x>\n<lora:only_low:1:0:on=low>",
            model_low=low, **given)  # fmt: skip
    with refused("recording is of one model"):
        run("LoraAlloyMeasure", recording=record(), model_low=low)
    alone = run("LoraAlloyRecord", loras="<lora:dream_high_noise:1:0:prompt=x>", model_low=low, **given)[0]
    assert alone.low is None, "no LoRA is for the low-noise model"
