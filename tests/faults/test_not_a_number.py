"""NaN and infinity that appear in a merge are an error that names the layer and the LoRA."""

import pytest
import torch

import merge_ops
from merge_ops import Lora, LowRank, MergeError
from merge_ops.adapters import Dora, Full, Glora, Hadamard, Ia3, InputRotation, Kronecker, Oft, Trained
from merge_ops.saving.stored import refuse_what_overflows

UP, DOWN = torch.ones(6, 2), torch.ones(2, 4)
HUGE = 1e30
LAYERS = {
    "LoRA": LowRank(UP * HUGE, DOWN * HUGE),
    "alpha": LowRank(UP, DOWN, 1e38),
    "bfloat16": LowRank((UP * HUGE).bfloat16(), (DOWN * HUGE).bfloat16()),
    "LoHa": Hadamard(UP * HUGE, DOWN, UP * HUGE, DOWN),
    "LoKr": Kronecker(torch.ones(2, 2) * HUGE, torch.ones(3, 2) * HUGE, 2),
    "full difference": Full(torch.full((6, 4), 1e38)),
}
FINE = LowRank(UP, DOWN)
BASED = {
    "DoRA": Dora(FINE, torch.ones(6, 1)),
    "GLoRA": Glora(torch.ones(4, 2), torch.ones(2, 4), UP, DOWN, None),
    "OFT": Oft(torch.zeros(3, 2, 2), None, 0.0),
    "OFT of PEFT": InputRotation(torch.eye(2).repeat(2, 1, 1)),
    "(IA)3": Ia3(torch.ones(6), False),
    "trained": Trained(torch.ones(6, 4)),
}


def of(name, layer):
    return Lora(name, {"unet.conv_in": layer})


@pytest.mark.parametrize("method", sorted(merge_ops.METHODS))
@pytest.mark.parametrize("kind", LAYERS)
def test_factors_that_overflow(kind, method):
    """In every method, before anything of it is used."""
    with pytest.raises(MergeError, match=r"unet.conv_in of broken becomes NaN or infinity"):
        merge_ops.merge([of("fine", FINE), of("broken", LAYERS[kind])], method=method, moments={})


def test_a_weight_that_overflows():
    """And a scale."""
    for keywords in ({"weights": [1, 1e38]}, {"scale": 1e38}):
        with pytest.raises(MergeError, match=r"unet.conv_in of .* at weight 1e\+38"):
            merge_ops.merge([of("a", FINE), of("b", FINE)], **keywords)


@pytest.mark.parametrize("kind", BASED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_base_weight_that_is_not_a_number(kind, bad, tmp_path):
    """Adapters that need the base model meet it when they are computed: for a delta, and for a file."""
    weight = torch.ones(6, 4)
    weight[1, 2] = bad
    lora = Lora("broken", {}, base_dependent={"unet.conv_in": BASED[kind]})
    merged = merge_ops.merge([lora, of("fine", FINE)], base=lambda name: weight)
    with pytest.raises(MergeError, match=r"of broken .* NaN or infinity"):
        merged.delta("unet.conv_in")
    with pytest.raises(MergeError, match=r"of broken .* NaN or infinity"):
        merge_ops.save(merged, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_large_and_finite_is_merged():
    """Numbers that float32 holds are no reason to refuse."""
    merged = merge_ops.merge([of("a", LowRank(UP * 1e15, DOWN * 1e15)), of("b", FINE)], method="ties")
    assert torch.isfinite(merged.delta("unet.conv_in")).all()


@pytest.mark.parametrize("method", [name for name, m in merge_ops.METHODS.items() if not m.needs_recording])
@pytest.mark.parametrize("kind", ["DoRA", "GLoRA", "trained"])
def test_a_finite_change_of_the_base_that_a_weight_makes_infinite(kind, method, tmp_path):
    """How large the change is shows only when it is computed: for a delta, and for a file."""
    lora = Lora("broken", {}, base_dependent={"unet.conv_in": BASED[kind]})
    for keywords in ({"weights": [1e6, 1e6]}, {"scale": 1e6}, {"weights": [1e3, 1e3], "scale": 1e3}):
        try:
            merged = merge_ops.merge([lora, of("fine", FINE)], method=method, base=huge_base, **keywords)
            delta = merged.delta("unet.conv_in")
        except MergeError as error:
            assert "unet.conv_in" in str(error)
        else:
            assert bool(torch.isfinite(delta).all()), keywords
            with pytest.raises(MergeError):
                merge_ops.save(merged, tmp_path / "x.safetensors", dtype=torch.float16)


def huge_base(name):
    return torch.full((6, 4), 3e33)


def test_the_advice_for_what_no_dtype_holds(tmp_path):
    """``float32`` is not the way out where it failed."""
    merged = merge_ops.merge([of("a", LowRank(UP * 1e4, DOWN * 1e4))], scale=1e25)
    with pytest.raises(MergeError, match=r"save it with dtype=torch\.float32"):
        merge_ops.save(merged, tmp_path / "x.safetensors", dtype=torch.float16)
    with pytest.raises(MergeError, match="too large for any dtype, so lower the weights"):
        refuse_what_overflows("unet.conv_in", LowRank(UP * torch.inf, DOWN), torch.float32)
