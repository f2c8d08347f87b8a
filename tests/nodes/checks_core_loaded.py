"""Checks of what ``nodes/model/core_patches.py`` expects of patches: one for each function, by its name.

If one fails after an update of ComfyUI, only the function of that name has to follow.
"""

from importlib import import_module

import comfy.hooks
import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
import comfy.weight_adapter
import torch
from checks_based import boft, dora, glora, oft
from checks_kinds import loha, lokr
from comfy_inside import LORAS, check, load_model, three_loras

core = import_module("alloy_pack.nodes.model.core_patches")


def loaded(model_name="flux"):
    """A model with one LoRA at 0.5, and the state of its file."""
    model, _ = load_model(model_name)
    state = comfy.utils.load_torch_file(str(LORAS / three_loras(model_name)[0][0]), safe_load=True)
    return comfy.sd.load_lora_for_models(model, None, state, 0.5, 0)[0], state


@check
def core_read_patches():
    """Strength, value, what the weight is multiplied by, the slice, and the order of ``add_patches``."""
    patcher, _ = loaded()
    key = next(key for key, entries in patcher.patches.items() if len(entries) == 3)  # q, k and v
    patcher.add_patches({key: [(torch.zeros(1), None)]}, 0.75, 0.25)
    *slices, last = core.read_patches(patcher)[key]
    assert [each.target.part.start for each in slices] == sorted(each.target.part.start for each in slices)
    assert {each.strength for each in slices} == {0.5} and {each.scale for each in slices} == {1.0}
    assert last.strength == 0.75 and last.scale == 0.25 and last.target.is_whole and last.value[0][1] is None
    assert [each.entry for each in (*slices, last)] == patcher.patches[key]


@check
def core_list_entries():
    """Copies, so that a change of them does not change the model."""
    patcher, _ = loaded()
    entries = core.list_entries(patcher)
    assert entries == patcher.patches
    next(iter(entries.values())).clear()
    assert all(patcher.patches.values())


@check
def core_put_patches():
    """The clone has them and counts as another one, which is loaded anew; the model keeps its own."""
    patcher, _ = loaded()
    key, entries = next(iter(patcher.patches.items()))
    clone = patcher.clone()
    core.put_patches(clone, {key: entries, "none": []})
    assert clone.patches == {key: entries} and len(patcher.patches) > 1
    assert not clone.clone_has_same_weights(patcher)


@check
def core_adapter_tensors():
    """Every kind that ComfyUI reads keeps its tensors in the order that is expected here."""
    random = torch.Generator().manual_seed(1)

    def made(*shape):
        return torch.rand(shape, generator=random)

    tucker = {"lora_up.weight": made(8, 2, 1, 1), "lora_down.weight": made(2, 4, 1, 1),
              "lora_mid.weight": made(2, 2, 3, 3), "reshape_weight": torch.tensor([8, 4, 3, 3])}  # fmt: skip
    cores = {"hada_w1_a": made(2, 8), "hada_w1_b": made(2, 4), "hada_w2_a": made(2, 8),
             "hada_w2_b": made(2, 4), "hada_t1": made(2, 2, 3, 3), "hada_t2": made(2, 2, 3, 3)}  # fmt: skip
    lokr_core = {"lokr_w1_a": made(2, 1), "lokr_w1_b": made(1, 2), "lokr_w2_a": made(2, 4),
                 "lokr_w2_b": made(2, 2), "lokr_t2": made(2, 2, 3, 3)}  # fmt: skip
    kinds = {
        "lora": [dora((8, 4), made), tucker],
        "loha": [loha((8, 4), random), cores],
        "lokr": [lokr((8, 4), random), lokr_core],
        "glora": [glora((8, 4), made)],
        "oft": [oft((8, 4), made)],
        "boft": [boft((8, 4), made)],
    }
    assert set(kinds) == {each.name for each in comfy.weight_adapter.adapters}
    for name, examples in kinds.items():
        for held in examples:
            state = {f"x.{role}": tensor for role, tensor in held.items()} | {"x.alpha": torch.tensor(1.5)}
            (adapter,) = comfy.lora.load_lora(state, {"x": "weight"}).values()
            assert adapter.name == name
            found = core.adapter_tensors(adapter)
            assert found.keys() == {f".{role}" for role in (*held, "alpha")}, (name, found.keys())
            assert all(
                torch.equal(found[f".{role}"].to(tensor.dtype), tensor) for role, tensor in held.items()
            )
            assert float(found[".alpha"]) == 1.5

    class Other(comfy.weight_adapter.LoRAAdapter):
        """Another pack's, which may do something else."""

    other = Other(set(), (made(8, 2), made(2, 4), None, None, None, None))
    assert core.adapter_tensors(other) is None and core.adapter_tensors(("diff", (made(2),))) is None
    assert core.adapter_tensors(other, (Other,)).keys() == {".lora_up.weight", ".lora_down.weight"}


def whole():
    """What ComfyUI makes of a file's whole differences, and of a weight that it sets."""
    state = {"x.diff": torch.rand(2, 2), "x.diff_b": torch.rand(2), "y.set_weight": torch.rand(3)}
    return state, comfy.lora.load_lora(state, {"x": "x.weight", "y": "y.weight"})


@check
def core_difference_of():
    """Of a weight and of a bias, also as ComfyUI once wrote it; not one that widens the weight."""
    state, found = whole()
    assert core.difference_of(found["x.weight"]) is state["x.diff"]
    assert core.difference_of(found["x.bias"]) is state["x.diff_b"]
    assert core.difference_of((state["x.diff"],)) is state["x.diff"]
    assert core.difference_of(found["y.weight"]) is None
    assert core.difference_of(("diff", (state["x.diff"], {"pad_weight": True}))) is None
    assert core.difference_of([(state["x.diff"], None)]) is None


@check
def core_replaced_by():
    """The weight of ``set_weight``."""
    state, found = whole()
    assert core.replaced_by(found["y.weight"]) is state["y.set_weight"]
    assert core.replaced_by(found["x.weight"]) is None


@check
def core_is_addition():
    """Weights of a model merge and differences are added; what sets or widens a weight is not."""
    state, found = whole()
    model, _ = load_model("flux")
    merged = next(iter(model.get_key_patches().values()))  # what Merge Models adds
    hook = comfy.hooks.create_hook_model_as_lora({"x": state["x.diff"]}, None, 1.0, 1.0).hooks[0]
    assert all(map(core.is_addition, (merged, found["x.weight"], hook.weights["x"])))
    padding = ("diff", (state["x.diff"], {"pad_weight": True}))
    assert not any(map(core.is_addition, (found["y.weight"], padding, ("fooocus", (1, 2)))))


@check
def core_loaded_keys_of():
    """One set for all that is loaded in one go, for MODEL and CLIP alike; another for the next time."""
    model, clip = load_model("sd15")
    state = comfy.utils.load_torch_file(str(LORAS / three_loras("sd15")[0][0]), safe_load=True)
    once = comfy.sd.load_lora_for_models(model, clip, state, 0.5, 0.5)
    twice = comfy.sd.load_lora_for_models(*once, state, 0.5, 0.5)
    entries = [held for part in (twice[0], twice[1].patcher) for held in part.patches.values()]
    first, second = ({id(core.loaded_keys_of(held[place][1])) for held in entries} for place in (0, 1))
    assert len(first) == len(second) == 1 and first != second
    assert core.loaded_keys_of(entries[0][0][1]) == set(state)
    assert core.loaded_keys_of(("diff", (torch.rand(2),))) is None


@check
def core_list_other_loras():
    """Hooks and bypass loaders leave no patches."""
    model, clip = load_model("sd15")
    state = comfy.utils.load_torch_file(str(LORAS / three_loras("sd15")[0][0]), safe_load=True)
    assert core.list_other_loras(model) == core.list_other_loras(clip) == []
    bypassed = comfy.sd.load_bypass_lora_for_models(model, clip, state, 0.5, 0.5)
    assert [core.list_other_loras(part) for part in bypassed] == [["a bypass loader"]] * 2
    hooked = clip.clone()
    hooked.patcher.forced_hooks = comfy.hooks.create_hook_lora(state, 1.0, 1.0)
    assert core.list_other_loras(hooked) == ["hooks"]
