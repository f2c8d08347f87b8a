"""LoHa, LoKr and full differences: stock LyCORIS makes the files and says what their deltas are."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from merge_ops.adapters import Full, Hadamard, Kronecker
from merge_ops.merging import merge

pytest.importorskip("lycoris")

from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule

LINEAR = torch.nn.Linear(48, 72, bias=False)
CONV = torch.nn.Conv2d(24, 36, 3, bias=False)
STEMS = {
    LINEAR: "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
    CONV: "lora_unet_mid_block_resnets_0_conv1",
}
KINDS = {
    "loha linear": (LohaModule, LINEAR, {}),
    "loha conv": (LohaModule, CONV, {}),
    "loha conv, Tucker": (LohaModule, CONV, {"use_tucker": True}),
    "lokr linear": (LokrModule, LINEAR, {"factor": 4}),
    "lokr linear, both decomposed": (
        LokrModule,
        LINEAR,
        {"factor": 6, "decompose_both": True, "lora_dim": 2},
    ),
    "lokr linear, full": (LokrModule, LINEAR, {"factor": 4, "full_matrix": True}),
    "lokr conv": (LokrModule, CONV, {"factor": 4, "lora_dim": 2}),
    "lokr conv, Tucker": (LokrModule, CONV, {"factor": 4, "lora_dim": 2, "use_tucker": True}),
    "lokr conv, full": (LokrModule, CONV, {"factor": 4, "full_matrix": True}),
}


@pytest.fixture
def made(tmp_path):
    """``(path, delta)`` of a module of LyCORIS with seeded random weights."""

    def make(kind, seed=0, alpha=2.0, dtype=torch.float32):
        cls, base, options = KINDS[kind]
        options = {"lora_dim": 4, "alpha": alpha, **options}
        module = cls("m", base, **options)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator).to(dtype))
        # what forward applies; get_diff_weight of LyCORIS 4.1.3 multiplies by alpha / rank a second time
        delta = module.eval().get_weight(base.weight.shape).detach()
        tensors = {f"{STEMS[base]}.{key}": t.to(dtype).contiguous() for key, t in module.state_dict().items()}
        path = tmp_path / f"{kind.replace(' ', '_').replace(',', '')}_{seed}.safetensors"
        save_file(tensors, path)
        return path, delta

    return make


def test_what_lycoris_applies_is_its_get_weight():
    """The oracle of this file, against the output of a wrapped layer."""
    module, x = LohaModule("m", LINEAR, lora_dim=4, alpha=2.0), torch.randn(5, 48)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        before = LINEAR(x)
        change = module.eval()(x) - before
        assert close(change, x @ module.get_weight((72, 48)).T, 1e-4)


def close(found, wanted, tolerance=1e-5):
    return float((found - wanted).norm()) <= tolerance * float(wanted.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_the_delta_is_that_of_lycoris(kind, made):
    path, wanted = made(kind)
    lora = merge_ops.load(path)
    (layer,) = lora.layers.values()
    assert isinstance(layer, Hadamard if kind.startswith("loha") else Kronecker)
    assert not lora.unmerged
    assert close(layer.delta().reshape(wanted.shape), wanted)
    assert close(merge([lora], [0.5]).delta(next(iter(lora.layers))).reshape(wanted.shape), 0.5 * wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_every_method_merges_them_with_a_plain_lora(kind, method, made, make_lora):
    """The method of the registry on the dense deltas, whatever kind they came from."""
    path, delta = made(kind)
    lora = merge_ops.load(path)
    (name,) = lora.layers
    factors = make_lora("plain", shapes={"x": tuple(delta.flatten(1).shape)}, seed=3).layers["x"]
    other = merge_ops.Lora("plain", {name: replace(factors, kernel=lora.layers[name].kernel)})
    density = {} if method == "linear" else {"density": 0.4}
    merged = merge([lora, other], [0.7, -0.4], method, seed=1, **density)
    full = Full(delta.flatten(1), kernel=lora.layers[name].kernel)
    plain = merge_ops.Lora(lora.name, {name: full})
    wanted = merge([plain, other], [0.7, -0.4], method, seed=1, **density)
    assert close(merged.delta(name), wanted.delta(name))


@pytest.mark.parametrize("kind", ["loha linear", "lokr linear"])
def test_truncating_and_saving(kind, made, tmp_path):
    """A merge of such kinds is saved at a rank, as a plain LoRA, within 1 % of the best of that rank."""
    path, delta = made(kind)
    merged = merge([merge_ops.load(path)], [1.0])
    report = merge_ops.save(merged, tmp_path / "saved.safetensors", rank=8, dtype=torch.float32)
    (saved,) = merge_ops.load(tmp_path / "saved.safetensors").layers.values()
    s = torch.linalg.svdvals(delta.double())
    error = float((saved.delta() - delta).norm())
    assert error <= 1.01 * float(s[8:].norm()) + 1e-5 * float(s.norm())
    assert report.total_error == pytest.approx(error / float(s.norm()), rel=1e-3, abs=1e-6)


def test_factor_space_needs_factors(made):
    lora = merge_ops.load(made("loha linear")[0])
    with pytest.raises(merge_ops.IncompatibleLoraError, match="space='delta'"):
        merge([lora, lora], space="factors")


def test_masks_do_not_depend_on_how_a_delta_is_stored(made):
    """A LoKr and its full difference are one LoRA: DARE draws the same masks."""
    path, delta = made("lokr linear")
    lora = merge_ops.load(path)
    (name,) = lora.layers
    full = merge_ops.Lora("other name", {name: Full(delta)})
    one, two = (merge([x], [1.0], "dare_linear", density=0.5).delta(name) for x in (lora, full))
    assert torch.equal(one != 0, two != 0)


def test_a_full_difference(tmp_path):
    """``.diff`` of a linear layer and of a convolution; alpha does not touch it; and of a bias."""
    weight, kernel = torch.randn(6, 5), torch.randn(4, 3, 3, 3)
    stem = "lora_unet_conv_in"
    save_file(
        {
            f"{STEMS[LINEAR]}.diff": weight, f"{STEMS[LINEAR]}.alpha": torch.tensor(3.0),
            f"{stem}.diff": kernel, f"{stem}.diff_b": torch.ones(4),
        },
        tmp_path / "full.safetensors",
    )  # fmt: skip
    lora = merge_ops.load(tmp_path / "full.safetensors")
    merged = merge([lora], [2.0])
    first, conv = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "unet.conv_in"
    assert torch.equal(merged.delta(first), 2 * weight)
    assert torch.equal(merged.delta(conv), 2 * kernel)
    assert torch.allclose(merged.delta(f"{conv}.bias"), torch.full((4,), 2.0))
    assert not lora.unmerged


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"hada_w1_a": (4, 2), "hada_w1_b": (2, 5), "hada_w2_a": (4, 2)}, "hada_w2_b"),
        ({"hada_w1_a": (4, 2), "hada_w1_b": (2, 5), "hada_w2_a": (4, 2), "hada_w2_b": (2, 6)}, "do not fit"),
        ({"hada_w1_a": (4, 2), "hada_w1_b": (3, 5), "hada_w2_a": (4, 2), "hada_w2_b": (2, 5)}, "do not fit"),
        ({"lokr_w1": (2, 2)}, "lokr_w2_a"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (2, 3), "lokr_w2_b": (4, 2)}, "do not fit"),
        ({"lokr_w1": (2,), "lokr_w2": (2, 2)}, "not a matrix"),
        ({"lokr_w1": (2, 2), "lokr_w2": (2, 2), "lora_up.weight": (4, 1)}, "two kinds"),
    ],
)
def test_broken_modules_are_named(tensors, says, tmp_path):
    path = tmp_path / "broken.safetensors"
    save_file({f"{STEMS[LINEAR]}.{key}": torch.randn(shape) for key, shape in tensors.items()}, path)
    with pytest.raises(merge_ops.LoraFormatError, match=says) as caught:
        merge_ops.load(path)
    assert STEMS[LINEAR] in str(caught.value)
