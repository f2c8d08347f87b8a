"""Checks of merges as one patch: the same sum as one for each LoRA, and how much is computed for it."""

import comfy.model_management
import comfy.weight_adapter.lora
import packed_weights as packed
import torch
from bypass_inside import assert_near, outputs_of
from checks_bypass import LINEAR, loaded
from checks_control import write_control
from checks_kinds import write_kinds
from checks_packed import fresh
from checks_speed import TIES, with_fast
from comfy_inside import (
    LORAS,
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
from packed_weights import LAYOUTS, refusal
from safetensors.torch import save_file

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
def packs_that_patch_at_every_step_get_one():
    """As those for GGUF: the adapters that a forward pass computes, counted, and what comes out of it."""
    rows, model = three_loras("flux"), fresh()
    keys = [key for key in model.model.state_dict() if "double_blocks" in key and key.endswith("proj.weight")]
    model = packed.put_packed(model, *LAYOUTS["states its shape"], keys, packed.PatcherOfPack)
    ours = loaded(model, None, rows)
    assert "3 LoRAs in one patch for each of" in ours[2] and "computes at every step" in ours[2], ours[2]
    chain = chained(model, None, rows)[0]
    real = comfy.weight_adapter.lora.LoRAAdapter.calculate_weight
    computed = []

    def counting(adapter, weight, *args, **kwargs):
        computed.append(weight.numel())
        return real(adapter, weight, *args, **kwargs)

    found, sizes = [], []
    for patcher in (chain, ours[0]):
        with torch.inference_mode():
            patcher.patch_model(packed.CPU)
            comfy.weight_adapter.lora.LoRAAdapter.calculate_weight = counting
            computed.clear()
            try:
                modules = [patcher.model.get_submodule(key.removesuffix(".weight")) for key in keys]
                x = torch.randn(2, modules[0].in_features, generator=torch.Generator().manual_seed(1))
                found.append({key: module(x) for key, module in zip(keys, modules, strict=True)})
            finally:
                comfy.weight_adapter.lora.LoRAAdapter.calculate_weight = real
            sizes.append(list(computed))
            patcher.unpatch_model(packed.CPU)
            for module in modules:
                module.weight.patches = []
    assert_near(found[1], found[0], "packed", 1e-5)
    held = [len(chain.patches[key]) for key in keys]
    assert len(sizes[0]) == sum(held) > len(keys) == len(sizes[1]), (held, sizes)
    single = loaded(model, None, rows[:1])
    assert "in one patch" not in single[2], single[2]


for _layout in ("bytes", "has a state", "floats", "whole numbers"):

    @check
    def packed_weights_take_a_bypass(layout=_layout):
        """What cannot be patched is refused with the way out; there the layers give what they should."""
        rows, model = three_loras("flux"), fresh()
        keys = [
            key for key in model.model.state_dict() if "double_blocks" in key and key.endswith("proj.weight")
        ]
        plain = {key: model.model.get_parameter(key).detach().clone() for key in keys}
        linear, weight_of = LAYOUTS[layout]

        class PackedLinear(linear):
            """Computes with the numbers that it was packed from; nothing hands them to a patch."""

            def forward(self, x):
                return torch.nn.functional.linear(x, plain[self.stored_under], self.bias)

        model = packed.put_packed(model, PackedLinear, weight_of, keys)
        for key in keys:
            module = model.model.get_submodule(key.removesuffix(".weight"))
            module.stored_under = key
            module.in_features = plain[key].shape[1]
        said = refusal(lambda: loaded(model, None, rows))
        assert said.endswith("or set patching to bypass in Load & Merge LoRAs or Apply Merged LoRA"), said
        base = outputs_of_keys(model, keys)
        for method in (LINEAR, TIES):
            ours = loaded(model, None, rows, method, patching="bypass")[0]
            usual = loaded(fresh(), None, rows, method)[0]
            unpacked = outputs_of_keys(fresh(), keys)
            wanted = outputs_of_keys(usual, keys)
            got = outputs_of_keys(ours, keys)
            for key in keys:
                assert torch.allclose(got[key] - base[key], wanted[key] - unpacked[key], atol=1e-4), (
                    method,
                    key,
                )
        stack = run("LoraAlloyStack", loras=text_of(rows))[0]
        lora = run("LoraAlloyMerge", stack=stack)[0]
        given = {"lora": lora, "model": model, "strength_model": 1.0, "strength_clip": 1.0}
        assert refusal(lambda: run("LoraAlloyApply", **given)) and run(
            "LoraAlloyApply", **given, patching="bypass"
        )


def outputs_of_keys(patcher, keys):
    """As ``outputs_of``, also of layers that derive from no class of torch."""
    found = {}
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher])
        for place, key in enumerate(keys):
            module = patcher.model.get_submodule(key.removesuffix(".weight"))
            x = torch.randn(2, module.in_features, generator=torch.Generator().manual_seed(place))
            found[key] = module(x).clone()
        comfy.model_management.unload_all_models()
    return found


@check
def what_no_bypass_holds_is_refused_without_a_way_out():
    """A weight that is put in place of the model's."""
    model = fresh()
    (key,) = [k for k in model.model.state_dict() if k.endswith("double_blocks.0.img_attn.proj.weight")]
    shape = tuple(model.model.state_dict()[key].shape)
    model = packed.put_packed(model, *LAYOUTS["bytes"], [key])
    save_file({f"{key.removesuffix('.weight')}.set_weight": torch.ones(shape)}, LORAS / "set.safetensors")
    for way in ("auto", "bypass"):
        said = refusal(lambda w=way: loaded(model, None, [("set.safetensors", 1, 1)], patching=w))
        assert "keeps packed" in said and "set patching to bypass" not in said, said


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


for _form in ("float8_e4m3fn", "int8_tensorwise", "nvfp4"):

    @check
    def quantised_layers_take_a_bypass(form=_form):
        """What is added is that of the plain model: the quantised weight stays as it is, bit for bit."""
        rows = three_loras("flux")
        model, keys = packed.load_quantised(form, tile=16)
        before = {key: model.model.get_parameter(key).dequantize().clone() for key in keys}
        base, plain = outputs_of(model, keys), outputs_of(load_model("flux")[0], keys)
        for method in (LINEAR, TIES):
            ours = outputs_of(loaded(model, None, rows, method, patching="bypass")[0], keys)
            wanted = outputs_of(loaded(load_model("flux")[0], None, rows, method)[0], keys)
            added = {key: output - base[key] for key, output in ours.items()}
            assert_near(added, {key: wanted[key] - plain[key] for key in keys}, (form, method), 1e-3)
        assert all(torch.equal(model.model.get_parameter(key).dequantize(), before[key]) for key in keys)
