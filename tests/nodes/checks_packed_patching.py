"""Checks of one patch and of bypass on packed and quantised weights: what is computed, and the result."""

import comfy.model_management
import comfy.weight_adapter.lora
import packed_weights as packed
import torch
from bypass_inside import assert_near, outputs_of
from checks_bypass import LINEAR, loaded
from checks_packed import fresh
from checks_speed import TIES
from comfy_inside import LORAS, chained, check, load_model, run, text_of, three_loras
from packed_weights import LAYOUTS, refusal
from safetensors.torch import save_file


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
