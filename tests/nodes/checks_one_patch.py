"""Checks of merges as one patch: the same sum as one for each LoRA, and how much is computed for it."""

import torch
from checks_bypass import LINEAR, loaded
from checks_control import write_control
from checks_kinds import write_kinds
from checks_speed import TIES, with_fast
from comfy_inside import (
    MODELS,
    OF_EACH_KIND,
    assert_close,
    chained,
    check,
    load_model,
    merge_ops,
    run,
    some_methods,
    text_of,
    three_loras,
    weights_of,
    write_lora,
)
from packed_weights import refusal

ONE = {"patching": "one patch"}


def counts(model, clip=None):
    """How many patches the weights have, or each part of one."""
    entries = [e for part in (model, clip and clip.patcher) if part for e in part.patches.values()]
    return {len([e for e in held if e[3] == part]) for held in entries for part in {e[3] for e in held}}


for _name in MODELS:

    @check
    def one_patch_is_the_sum(name=_name):
        """Of three LoRAs within rounding, of one with its bits, and of what other methods make low rank."""
        model, clip = load_model(name)
        rows = three_loras(name)
        usual = loaded(model, clip, rows)
        ours = loaded(model, clip, rows, **ONE)
        assert_close(weights_of(*ours[:2]), weights_of(*usual[:2]), name, 1e-6)
        assert counts(*ours[:2]) == {1} and 3 in counts(*usual[:2])
        assert "model: 3 LoRAs in one patch for each of " in ours[2], ours[2]
        assert "in one patch" not in usual[2], usual[2]
        assert_close(weights_of(*usual[:2]), weights_of(*chained(model, clip, rows)), "the default")
        alone = loaded(model, clip, rows[:1], **ONE)
        assert_close(weights_of(*alone[:2]), weights_of(*chained(model, clip, rows[:1])), "one LoRA", 1e-7)


@check
def one_patch_of_other_methods():
    """What has factors becomes them, and what has none is the patch that it was."""
    model, _ = load_model("flux")
    rows = three_loras("flux")
    for method, density in some_methods(OF_EACH_KIND):
        chosen = {"method": method, **density}
        usual, ours = (loaded(model, None, rows, chosen, patching=way)[0] for way in ("auto", "one patch"))
        assert_close(weights_of(ours, None), weights_of(usual, None), method, 2e-6)
        assert counts(ours) == {1}, method
        kinds = {type(entry[1]).__name__ for held in ours.patches.values() for entry in held}
        assert ("LowRankAdapter" in kinds) is (method in ("even", "np", "knots_ties")), (method, kinds)


@check
def factors_are_small():
    """The downs keep their dtype, and the ups are of the size of the file's, with the scale apart."""
    model, _ = load_model("sd15")
    rows = [
        (write_lora("tiny_alpha", "sd15", 8, 0.002, 1), 1, 1),
        (write_lora("b", "sd15", 4, 0.001, 2), 1, 1),
    ]
    patcher = loaded(model, None, rows, **ONE)[0]
    for ((_, adapter, *_),) in patcher.patches.values():
        up, down, alpha, *_ = adapter.weights
        assert down.dtype == torch.float16 and up.shape[1] == down.shape[0] == 12
        assert 0.01 < float(up.abs().mean()) < 0.1 and abs(alpha / 12 - 0.00025) < 1e-9


@check
def other_kinds_have_a_patch_of_their_own():
    """LoKr, LoHa and differences beside the plain LoRAs of a weight; speed LoRAs are in the same patch."""
    for name in ("sd15", "flux"):
        model, clip = load_model(name)
        rows = [
            (write_lora("plain", name, 4, 2, 1), 0.7, 0.4),
            (write_kinds("kinds", name, 2), -0.6, 0.9),
            (write_lora("more", name, 2, None, 5), 0.5, 0.5),
        ]
        usual, ours = loaded(model, clip, rows), loaded(model, clip, rows, **ONE)
        assert_close(weights_of(*ours[:2]), weights_of(*usual[:2]), name, 1e-5)
        assert counts(*ours[:2]) == {2}
        assert "in one patch for each of 0 weights" in ours[2] and "have another one" in ours[2], ours[2]
        fast = with_fast(name)
        for method, many in ((LINEAR, {1}), ({"method": "even"}, {1}), (TIES, {1, 2})):
            usual, ours = loaded(model, clip, fast, method), loaded(model, clip, fast, method, **ONE)
            assert_close(weights_of(*ours[:2]), weights_of(*usual[:2]), (name, method), 2e-6)
            assert counts(*ours[:2]) == many, (method, counts(*ours[:2]))


@check
def control_loras_widen_in_one_patch_too():
    """The widened layer, the plain LoRA on its first half, and the norms that are replaced; not by bypass."""
    model, _ = load_model("flux")
    rows = [(write_control(1), 0.8, 0), three_loras("flux")[0]]
    usual, ours = loaded(model, None, rows), loaded(model, None, rows, **ONE)
    assert_close(weights_of(ours[0], None), weights_of(usual[0], None), "control", 1e-6)
    said = loaded(model, None, rows, patching="bypass")[2]
    assert "1 layers that a control LoRA widens" in said and "whole weights" in said, said


@check
def settings_are_in_the_patch():
    """Block strengths, the strength of the merge, a rank, PEFT's types, and a strength for each part."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    text = text_of(rows[:1]).replace(">", ":blocks=down:0.3 mid:0>") + "\n" + text_of(rows[1:])
    for more in (
        {"strength": -1.3},
        {"rank": 3},
        {"method": {"method": "peft", "combination_type": "cat"}},
        {"method": {"method": "linear"}, "space": "delta"},
    ):
        given = {"model": model, "clip": clip, "loras": text, "method": LINEAR, **more}
        usual, ours = run("LoraAlloyLoader", **given), run("LoraAlloyLoader", **given, **ONE)
        assert_close(weights_of(*ours[:2]), weights_of(*usual[:2]), str(more), 2e-6)
        applied = [
            run("LoraAlloyApply", lora=usual[2], model=model, clip=clip, strength_model=0.5,
                strength_clip=2, patching=way)
            for way in ("auto", "one patch")
        ]  # fmt: skip
        assert_close(weights_of(*applied[1]), weights_of(*applied[0]), "Apply", 2e-6)


@check
def a_misspelled_choice_is_refused():
    """At the run, as every other choice."""
    said = refusal(lambda: loaded(load_model("sd15")[0], None, three_loras("sd15"), patching="one_patch"))
    assert said == "patching 'one_patch' is not a choice (did you mean 'one patch'?)", said
    assert issubclass(merge_ops.ParameterError, merge_ops.MergeError)


@check
def merge_loaded_reads_one_patch_as_one_lora():
    """What one patch holds can be merged further, as a LoRA of the sum of the ranks."""
    model, _ = load_model("sd15")
    rows = three_loras("sd15")
    ours = loaded(model, None, rows, **ONE)[0]
    again = run("LoraAlloyMergeLoaded", model=ours, method=LINEAR, strength=0.5)[0]
    wanted = loaded(model, None, rows, strength=0.5)[0]
    assert_close(weights_of(again, None), weights_of(wanted, None), "loaded", 1e-5)
