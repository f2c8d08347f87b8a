"""Weights of another shape than the model's: left out by name, and most of them mean another base model."""

import pytest
import torch
from torch import nn

from merge_ops import IncompatibleLoraError, merge
from merge_ops.adapters import Dora, Full, Glora, Ia3, InputRotation, Oft
from merge_ops.formats import from_tensors
from merge_ops.merging.misfits import leave_out_misfits
from merge_ops.models.transformers import patched

SHAPES = {f"block.{n}.fc": (12, 8) for n in range(4)}
WIDE = SHAPES | {"block.3.fc": (12, 16)}


class Model(nn.Module):
    """Four linear layers under the names of ``SHAPES``."""

    def __init__(self, shapes):
        super().__init__()
        self.block = nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(i, o)}) for o, i in shapes.values())


def weights(model):
    return {f"{name}.fc": module["fc"].weight.detach() for name, module in model.block.named_children()}


def base_of(model):
    return {f"block.{name}": weight for name, weight in weights(model).items()}.get


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "even"])
def test_with_the_base_only_the_misfit_is_left_out(method, make_lora):
    """Of two LoRAs the one that fits still changes the weight, as if the other did not have it."""
    good, odd = make_lora("good", shapes=SHAPES, seed=1), make_lora("odd", shapes=WIDE, seed=2)
    base = base_of(Model(SHAPES))
    merged = merge([good, odd], [0.7, 0.5], method, base=base, seed=3)
    alone = merge([good], [0.7], method, seed=3)
    assert torch.allclose(merged.delta("block.3.fc"), alone.delta("block.3.fc"), atol=1e-6)
    (row,) = [row for row in merged.report.layers if row.status == "skipped"]
    assert row.name == "block.3.fc" and "odd: does not fit the model: it has shape (12, 16)" in row.reason
    assert any("skipped 1 weight: block.3.fc" in line for line in merged.report.warnings)
    with pytest.raises(
        IncompatibleLoraError, match=r"block.3.fc has the shape .* in good and .* in odd.*base="
    ):
        merge([good, odd], [0.7, 0.5], method)


def kinds(o, i):
    """One adapter of every kind for a weight ``(o, i)``."""
    yield Full(torch.ones(o, i), key="fc")
    yield Dora(Full(torch.ones(o, i)), torch.ones(o, 1), key="fc")
    yield Glora(torch.ones(i, 2), torch.ones(2, i), torch.ones(o, 2), torch.ones(2, i), None, key="fc")
    yield Ia3(torch.ones(o), False, key="fc")
    yield Ia3(torch.ones(i), True, key="fc")
    yield Oft(torch.ones(o // 4, 4, 4), None, 0.0, key="fc")
    yield InputRotation(torch.eye(4).repeat(i // 4, 1, 1), torch.ones(o, 1), key="fc")
    yield from from_tensors(
        "a", {"fc.lokr_w1": torch.ones(2, 2), "fc.lokr_w2": torch.ones(o // 2, i // 2)}
    ).layers.values()


@pytest.mark.parametrize("number", range(8))
def test_every_kind_knows_what_it_fits(number):
    """The weight that it was made for, and none of another height or width."""
    adapter = list(kinds(12, 8))[number]
    assert adapter.fits((12, 8))
    by_rows_only = isinstance(adapter, Oft) or (isinstance(adapter, Ia3) and not adapter.by_input)
    by_columns_only = isinstance(adapter, Ia3) and adapter.by_input
    assert adapter.fits((12, 20)) == by_rows_only
    assert adapter.fits((20, 8)) == by_columns_only
    assert not adapter.fits((20, 20)) and not adapter.fits(())


def test_half_is_skipped_and_more_is_refused(make_lora):
    shapes = dict.fromkeys(SHAPES, (12, 8))
    half = {name: (12, 16) if name[6] in "01" else (12, 8) for name in SHAPES}
    lora = leave_out_misfits(make_lora("x", shapes=half), shapes)
    assert len(lora.layers) == 2 and len(lora.unmerged) == 2 and "skipped 2 weights" in lora.warnings[-1]
    most = half | {"block.2.fc": (12, 16)}
    with pytest.raises(IncompatibleLoraError, match=r"x: 3 of 4 weights do not fit.*another base model"):
        leave_out_misfits(make_lora("x", shapes=most), shapes)


def test_a_model_in_memory_skips_it_with_a_warning(make_lora):
    """The rest is added, the weights come back, and the patch names what it left out."""
    model = Model(SHAPES)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    merged = merge([make_lora("odd", shapes=WIDE)])
    with pytest.warns(UserWarning, match="skipped 1 weight: block.3.fc"):
        patch = patched(model, merged)
    assert list(patch.misfits) == ["block.3.fc"]
    after = model.state_dict()
    assert torch.equal(after["block.3.fc.weight"], before["block.3.fc.weight"])
    wanted = before["block.0.fc.weight"] + merged.delta("block.0.fc")
    assert torch.allclose(after["block.0.fc.weight"], wanted, atol=1e-6)
    patch.restore()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_text_of_another_width_is_another_model(make_lora):
    """An SD2 LoRA on SD1.x misfits in its cross-attention alone, and is no LoRA for it."""
    block = "unet.mid_block.attentions.0.transformer_blocks.0"
    shapes = {f"{block}.{name}": (8, 8) for name in ("attn1.to_q", "attn1.to_k", "attn2.to_q", "attn1.to_v")}
    text = {f"{block}.attn2.to_k": (8, 16)}
    with pytest.raises(IncompatibleLoraError, match="whose text has another width"):
        leave_out_misfits(make_lora("sd2", shapes=shapes | text), shapes | {f"{block}.attn2.to_k": (8, 12)})
