"""Checks of sweeps: what is varied, what is computed once, refusals, the grid."""

from importlib import import_module

import comfy.samplers  # noqa: F401  (core's nodes need it)
import torch
from comfy_inside import (
    NODES,
    assert_close,
    check,
    load_model,
    merge_ops,
    patched,
    run,
    text_of,
    three_loras,
    write_lora,
)

spaces = import_module("alloy_pack.merge_ops.merging.spaces")


def sweep(parameter, values, method=None):
    return run("LoraAlloySweep", parameter=parameter, values=values, method=method)


@check
def each_value_is_what_its_widget_gives():
    """Every parameter that can be swept, against the node with that value set by hand; Merge and Loader."""
    model, _ = load_model("flux")
    rows = three_loras("flux")
    stack, *_ = run("LoraAlloyStack", loras=text_of(rows))
    ties = {"method": "ties", "density": 0.3}
    changed = [(n, 0.25, 0.25) if n == rows[1][0] else (n, s, c) for n, s, c in rows]
    tag = text_of(rows[1:2])
    cases = [
        ("density", "0.1, 0.6", ties, {"method": {"method": "ties", "density": 0.6}}),
        ("method", "linear, dare_ties", ties, {"method": {"method": "dare_ties", "density": 0.3}}),
        ("seed", "1..4", {"method": "dare_linear"}, {"method": {"method": "dare_linear"}, "seed": 4}),
        ("rank", "2, 5", ties, {"method": ties, "rank": 5}),
        ("strength", "1, -0.5", ties, {"method": ties, "strength": -0.5}),
        ("strength flux_b", "0, 0.25", ties, {"method": ties, "loras": text_of(changed)}),
        ("strength 2", "0.25", ties, {"method": ties, "loras": text_of(changed)}),
        ("blocks flux_b", "double:1, double:0.5 attn:0", ties,
         {"method": ties, "loras": text_of(rows).replace(tag, tag[:-1] + ":blocks=double:0.5 attn:0>")}),
        ("combination_type", "cat, dare_ties_svd", {"method": "peft"},
         {"method": {"method": "peft", "combination_type": "dare_ties_svd"}}),
    ]  # fmt: skip
    for parameter, values, base, widgets in cases:
        loras = widgets.pop("loras", text_of(rows))
        byhand = run("LoraAlloyLoader", model=model, loras=loras, **widgets)
        expected = patched(byhand[0])
        (method,) = run("LoraAlloyMethod", method=base)
        choice = sweep(parameter, values, method)[0][-1]
        lora, report, *_ = run("LoraAlloyMerge", stack=stack, method=choice, model=model)
        assert report.startswith(f"{choice.label}: "), report
        applied = run("LoraAlloyApply", model=model, lora=lora, strength_model=1.0, strength_clip=1.0)
        assert_close(patched(applied[0]), expected, f"Merge, {parameter}", 1e-6)
        alone = sweep(parameter, values)[0][-1]  # the widgets of the loader are what stays the same
        loaded = run("LoraAlloyLoader", model=model, loras=text_of(rows), method=base, sweep=alone)
        assert_close(patched(loaded[0]), expected, f"Loader, {parameter}")


@check
def two_sweeps_are_a_product():
    """Each value of the one with each of the other, in the order of the labels; either may come first."""
    (method,) = run("LoraAlloyMethod", method={"method": "ties", "density": 0.9})
    first, labels = sweep("density", "0.2, 0.5", method)
    assert labels == ["density=0.2", "density=0.5"]
    chained = [sweep("method", "linear, dare_ties", choice) for choice in first]  # as ComfyUI runs a list
    labels = [label for _, those in chained for label in those]
    assert labels == [f"density={d}, method={m}" for d in (0.2, 0.5) for m in ("linear", "dare_ties")]
    other = [sweep("density", "0.2, 0.5", c)[0] for c in sweep("method", "linear, dare_ties", method)[0]]
    for i, (those, _) in enumerate(chained):
        for j, choice in enumerate(those):
            assert choice.override().keywords == other[j][i].override().keywords


@check
def what_strengths_share_is_computed_once():
    """Eight strengths find each threshold and read each file once, as one strength does."""
    counts = {"thresholds": 0, "files": 0}
    formats = import_module("alloy_pack.merge_ops.formats")
    find, read = spaces.product_thresholds, formats.load

    def counted_find(factors, *rest):
        counts["thresholds"] += len(factors)
        return find(factors, *rest)

    def counted_read(path):
        counts["files"] += 1
        return read(path)

    spaces.product_thresholds = counted_find
    formats.load = counted_read
    try:
        for values in ("0.5", "0.1..0.8 step 0.1"):
            # files of their own, so that nothing is known about them yet
            names = [write_lora(f"shared_{len(values)}_{i}", "flux", 16, 8, i + 40) for i in range(2)]
            model, _ = load_model("flux")
            counts.update(thresholds=0, files=0)
            stack, *_ = run("LoraAlloyStack", loras=text_of([(name, 1, 1) for name in names]))
            (method,) = run("LoraAlloyMethod", method={"method": "ties", "density": 0.4})
            for choice in sweep("strength 2", values, method)[0]:
                lora, *_ = run("LoraAlloyMerge", stack=stack, method=choice, model=model)
            assert counts == {"thresholds": 2 * len(lora.merged.layers), "files": 2}, counts
    finally:
        spaces.product_thresholds = find
        formats.load = read


@check
def zero_leaves_a_lora_out():
    """At strength 0 a LoRA is not there at all; the strength 0 of everything leaves the model as it is."""
    model, _ = load_model("flux")
    rows = three_loras("flux")
    stack, *_ = run("LoraAlloyStack", loras=text_of(rows[:2]))
    (method,) = run("LoraAlloyMethod", method={"method": "ties"})
    (without,) = sweep("strength 1", "0", method)[0]
    lora, *_ = run("LoraAlloyMerge", stack=stack, method=without)
    alone, *_ = run("LoraAlloyMerge", stack=stack[1:], method=method)
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    got = run("LoraAlloyApply", model=model, lora=lora, **strengths)
    assert_close(
        patched(got[0]),
        patched(run("LoraAlloyApply", model=model, lora=alone, **strengths)[0]),
        "0",
    )
    for parameter, given in (("strength", stack), ("strength flux_a", stack[:1])):
        (nothing,) = sweep(parameter, "0", method)[0]
        lora, report, *_ = run("LoraAlloyMerge", stack=given, method=nothing)
        assert "nothing is merged" in report
        out = run("LoraAlloyApply", model=model, lora=lora, **strengths)
        assert out[0] is model


@check
def refusals_of_sweeps():
    """Found out when the nodes run: a parameter that the method lacks, a LoRA that is not in the stack."""
    rows = three_loras("sd15")
    stack, *_ = run("LoraAlloyStack", loras=text_of([*rows[:2], rows[0]]))
    (linear,) = run("LoraAlloyMethod", method="linear")
    (peft,) = run("LoraAlloyMethod", method={"method": "peft", "combination_type": "svd"})
    cases = [
        (linear, "density", "density, which method linear does not have"),
        (None, "density", "density, which method linear does not have"),
        (linear, "strength mia", "the stack of 3 has no LoRA 'mia'"),
        (linear, "strength sd15_bb", "did you mean 'sd15_b'"),
        (linear, "strength 4", "the stack of 3 has no LoRA '4'"),
        (linear, "strength sd15_a", "give the number: 1 or 3"),
        (peft, "rank", "come from the combination type"),
        (sweep("strength", "1", linear)[0][0], "strength", "swept twice"),
    ]
    for method, parameter, says in cases:
        try:
            (choice,) = sweep(parameter, "1", method)[0]
            run("LoraAlloyMerge", stack=stack, method=choice)
        except merge_ops.MergeError as error:
            assert says in str(error), (says, str(error))
            assert "\n" not in str(error)
        else:
            raise AssertionError(f"not refused: {parameter}")


@check
def apply_takes_one_part_alone():
    """The text encoder without a model, the model without a text encoder, and neither."""
    model, clip = load_model("sd15")
    stack, *_ = run("LoraAlloyStack", loras=text_of(three_loras("sd15")))
    (method,) = run("LoraAlloyMethod", method={"method": "ties"})
    lora, *_ = run("LoraAlloyMerge", stack=stack, method=method)
    strengths = {"lora": lora, "strength_model": 1.0, "strength_clip": 0.5}
    both = run("LoraAlloyApply", model=model, clip=clip, **strengths)
    nothing, text = run("LoraAlloyApply", clip=clip, **strengths)
    assert nothing is None
    assert_close(patched(text.patcher), patched(both[1].patcher), "the text encoder alone")
    out = NODES["LoraAlloyApply"].execute(clip=clip, **strengths)
    assert "MODEL is not connected" in out.ui.as_dict()["text"][0]
    try:
        run("LoraAlloyApply", **strengths)
    except merge_ops.MergeError as error:
        assert "connect MODEL, CLIP, or both" in str(error)
    else:
        raise AssertionError("not refused")


@check
def a_grid_of_whatever_comes():
    """Batches, sizes and channels of all sorts; labels by batch; as many labels as pictures, or none."""
    pictures = [torch.rand(1, 64, 64, 3), torch.rand(2, 32, 48, 4), torch.rand(1, 700, 300, 1)]
    labels = ["density=0.2", "a long label " * 20, "density=0.5"]
    (grid,) = run("LoraAlloyGrid", images=pictures, labels=labels)
    assert grid.shape[0] == 1 and grid.shape[3] == 3 and 512 < grid.shape[1] < 700, grid.shape
    assert 0 <= grid.min() and grid.max() <= 1 and grid.dtype == torch.float32
    whole = run("LoraAlloyGrid", images=pictures, labels=labels, columns=[1], image_size=[0])[0]
    assert whole.shape[1] > 2100
    (plain,) = run("LoraAlloyGrid", images=[torch.rand(4, 64, 64, 3)])
    assert plain.shape[2] < 4 * 64 + 60
    batch = torch.stack([torch.full((64, 64, 3), i / 4) for i in range(4)])
    product = [f"a={a}, b={b}" for a in (1, 2) for b in (1, 2)]
    (table,) = run("LoraAlloyGrid", images=[batch], labels=product)
    for i in range(4):
        assert ((table - i / 4).abs() < 0.003).all(-1).sum() >= 64 * 64, i
    for bad, says in (({"labels": labels[:2]}, "2 labels"), ({"label": labels}, "did you mean 'labels'")):
        try:
            run("LoraAlloyGrid", images=pictures, **bad)
        except merge_ops.MergeError as error:
            assert says in str(error), (says, str(error))
        else:
            raise AssertionError(f"not refused: {bad}")
