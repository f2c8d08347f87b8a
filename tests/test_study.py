"""What ``inspect`` measures, against float64 numpy on full deltas, and the sentences that follow from it."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from merge_ops import IncompatibleLoraError, Lora, LowRank
from merge_ops.adapters import Full, Hadamard, Kronecker
from merge_ops.analysis.relations import relate
from merge_ops.analysis.spectrum import spectrum_of, squared_values
from merge_ops.analysis.study import study
from merge_ops.blocks.order import block_of, in_model_order, section_of
from merge_ops.errors import ParameterError
from merge_ops.merging import merge
from merge_ops.merging.align import AlignedLayer
from merge_ops.merging.report import sign_conflict

UNET = {
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (20, 20),
    "unet.down_blocks.1.attentions.0.proj_in": (24, 16),
    "unet.down_blocks.1.attentions.0.proj_out": (16, 24),
    "unet.mid_block.attentions.0.proj_in": (30, 18),
    "unet.up_blocks.0.attentions.1.proj_in": (24, 24),
    "unet.up_blocks.0.attentions.2.proj_in": (24, 24),
}


def deltas(lora):
    return {name: layer.matrix().numpy().astype(np.float64) for name, layer in lora.layers.items()}


def blend(name, first, share, second, rest, keep=lambda layer: True):
    """``share`` of one LoRA where ``keep`` says so, and ``rest`` of another everywhere."""
    layers = {}
    for key, layer in first.layers.items():
        part = share if keep(key) else 0.0
        up = torch.cat(
            (layer.up * layer.scale * part, second.layers[key].up * second.layers[key].scale * rest), 1
        )
        layers[key] = LowRank(up, torch.cat((layer.down, second.layers[key].down)), 1.0, key=key)
    return Lora(name, layers)


@pytest.fixture(scope="module")
def odd_layers():
    """One layer of every kind, all of one shape."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "low": LowRank(random(24, 3), random(3, 20), 0.5),
        "loha": Hadamard(random(24, 2), random(2, 20), random(24, 2), random(2, 20), 0.7),
        "wide loha": Hadamard(random(24, 4), random(4, 20), random(24, 4), random(4, 20), 0.7),
        "lokr": Kronecker(random(4, 5), random(6, 4), 3, 1.5),
        "full": Full(random(24, 20), 2.0),
    }


@pytest.mark.parametrize("kind", ["low", "loha", "wide loha", "lokr", "full"])
def test_singular_values_are_exact(odd_layers, kind):
    """Every kind, against numpy's SVD of the whole delta."""
    layer = odd_layers[kind]
    wanted = np.linalg.svd(layer.matrix().numpy().astype(np.float64), compute_uv=False) ** 2
    found = squared_values(layer).numpy()
    found = np.pad(found, (0, max(0, len(wanted) - len(found))))
    assert found[: len(wanted)] == pytest.approx(wanted, rel=1e-5, abs=1e-6 * wanted[0])


def test_ranks_that_keep_an_energy(make_lora):
    """Pooled over layers: what is left when every layer is cut to a rank, of the whole and of a block."""
    lora = make_lora(shapes=UNET, rank=8, alpha=3, decay=0.7)
    found = spectrum_of(lora)
    squares = {name: np.linalg.svd(m, compute_uv=False)[:8] ** 2 for name, m in deltas(lora).items()}
    for names, spectrum in (
        (list(UNET), found.whole),
        ([n for n in UNET if "down" in n], found.blocks["unet.down_blocks.1.attentions.0"]),
    ):
        kept = np.cumsum(sum(squares[name] for name in names))
        kept /= kept[-1]
        assert [spectrum.energy_at(rank) for rank in range(1, 9)] == pytest.approx(kept, rel=1e-6)
        for share in (0.5, 0.9, 0.99):
            assert spectrum.rank_for(share) == int(np.argmax(kept >= share)) + 1
    assert found.unmeasured == 0 and found.rank == 8


def test_full_layers_beyond_the_budget_are_counted(monkeypatch):
    """As many as the budget allows are measured; the rest is told, not hidden."""
    monkeypatch.setattr("merge_ops.analysis.spectrum._BUDGET", 4e6)
    layers = {f"unet.down_blocks.{i}.attentions.0.proj": Full(torch.randn(60, 50)) for i in range(10)}
    found = spectrum_of(Lora("checkpoint difference", layers))
    assert 0 < found.whole.layers < 10 and found.whole.layers + found.unmeasured == 10


@pytest.mark.parametrize("mixed", [False, True], ids=["low rank", "mixed kinds"])
def test_relations_are_those_of_the_deltas(make_lora, odd_layers, mixed):
    """Norms, cosines and shares of opposite signs, per block and over all; one LoRA has fewer layers."""
    loras = [make_lora(f"l{i}", shapes=UNET, rank=2 + i, alpha=5, seed=i) for i in range(3)]
    loras[2] = blend("l2", loras[0], -0.8, loras[1], 0.3)
    loras[2].layers.pop("unet.mid_block.attentions.0.proj_in")
    if mixed:
        names = [n for n, shape in UNET.items() if shape == (24, 24)]
        loras[1].layers[names[0]] = Full(torch.randn(24, 24, generator=torch.Generator().manual_seed(1)), 0.3)
    found = relate(loras)
    dense = [deltas(lora) for lora in loras]
    assert found.norms == pytest.approx([np.sqrt(sum((m**2).sum() for m in d.values())) for d in dense])
    assert list(found.block_norms[2]) == in_model_order(map(block_of, loras[2].layers))
    for relation in found.pairs:
        a, b = (dense[int(name[1])] for name in (relation.first, relation.second))
        for row in (relation, *relation.blocks):
            shared = [n for n in a if n in b and getattr(row, "block", block_of(n)) == block_of(n)]
            one, two = (np.concatenate([d[n].ravel() for n in shared]) for d in (a, b))
            assert row.layers == len(shared)
            assert row.cosine == pytest.approx(
                one @ two / np.linalg.norm(one) / np.linalg.norm(two), abs=1e-6
            )
            assert (row.norm_first, row.norm_second) == pytest.approx(
                (np.linalg.norm(one), np.linalg.norm(two))
            )
            assert row.sign_conflict == pytest.approx((one * two < 0).mean(), abs=1e-3), (
                "no layer has over 32 rows"
            )


def test_the_sign_conflict_is_that_of_a_merge_report(make_lora):
    """The same rows are looked at."""
    a, b = (make_lora(n, shapes={"layer": (300, 40)}, seed=i) for i, n in enumerate("ab"))
    wanted = sign_conflict(
        AlignedLayer("layer", (a.layers["layer"], b.layers["layer"]), (1.0, 1.0), ("", ""))
    )
    assert relate([a, b]).pairs[0].sign_conflict == pytest.approx(wanted)


def test_no_lora_has_no_relations():
    assert relate([]).pairs == ()


def test_different_shapes_are_refused(make_lora):
    with pytest.raises(IncompatibleLoraError, match="different base models"):
        study([make_lora("a", shapes={"x": (4, 4)}), make_lora("b", shapes={"x": (4, 6)})])


@pytest.mark.parametrize(
    ("block", "rest", "title", "label"),
    [
        ("unet.down_blocks.1.attentions.0", ".transformer_blocks.3.attn1.to_q", "down", "1.0"),
        ("unet.up_blocks.2.resnets.1", ".conv1", "up", "2.1r"),
        ("unet.up_blocks.2.upsamplers.0", ".conv", "up", "2s"),
        ("unet.mid_block", ".resnets.1.conv1", "mid", ""),
        ("unet.conv_in", "", "other", "conv_in"),
        ("text_encoder_2.text_model.encoder.layers.31", ".mlp.fc1", "text encoder 2", "31"),
        ("transformer.single_transformer_blocks.37", ".attn.to_q", "single transformer blocks", "37"),
        ("diffusion_model.double_blocks.18", ".img_attn.qkv", "double blocks", "18"),
        ("unet.double_blocks_18", "_img_attn_qkv", "double blocks", "18"),
        ("model.layers.4", ".self_attn.q_proj", "layers", "4"),
    ],
)
def test_blocks(block, rest, title, label):
    """Of every family: the block of a layer, and what a plot calls it."""
    assert block_of(block + rest) == block and section_of(block) == (title, label)


def test_blocks_come_in_model_order():
    """Text encoders, then from input to output, numbers in counting order."""
    order = [
        "text_encoder.text_model.encoder.layers.2", "text_encoder.text_model.encoder.layers.10",
        "text_encoder_2.text_model.encoder.layers.0", "unet.conv_in", "unet.down_blocks.2.attentions.0",
        "unet.mid_block", "unet.up_blocks.0.attentions.0", "unet.conv_out",
    ]  # fmt: skip
    assert in_model_order(reversed(order)) == order
    flux = ["transformer.transformer_blocks.3", "transformer.single_transformer_blocks.0"]
    assert in_model_order(reversed(flux)) == flux


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("unrelated", "ink and mia hardly touch each other"),
        ("same", "ink and mia make nearly the same change (cosine +1.00, opposite signs in 0 %"),
        ("same", "ink and mia repeat each other: their sum is 1.41 times as large as that of LoRAs that do"),
        ("overlap", "ink and mia pull the same way"),
        ("overlap", "0.77 times the strengths would match that, or take even or mean"),
        ("opposed", "ink and mia work against each other (cosine -0.9"),
        ("opposed in a part", "work against each other mostly in the up blocks"),
        ("loud", "mia is 9 times as strong as ink where both act: lower its strength (at 0.11 they"),
        ("apart", "ink and mia share no layer"),
        ("zero", "mia changes nothing"),
    ],
)
def test_advice_on_pairs(make_lora, case, says):
    """One honest sentence for each of the usual cases, the most pressing first."""
    shapes = dict.fromkeys(UNET, (120, 100))
    ink, other = (make_lora(n, shapes=shapes, seed=i) for i, n in enumerate(("ink", "other")))
    mia = {
        "unrelated": lambda: other,
        "same": lambda: ink,
        "overlap": lambda: blend("mia", ink, 0.7, other, 0.7),
        "opposed": lambda: blend("mia", ink, -1.0, other, 0.3),
        "opposed in a part": lambda: blend("mia", ink, -1.0, other, 0.7, lambda layer: "up_blocks" in layer),
        "loud": lambda: blend(
            "mia", ink, 0.0, other, 9.0 * relate([ink]).norms[0] / relate([other]).norms[0]
        ),
        "apart": lambda: Lora("mia", {f"transformer.{name}": layer for name, layer in ink.layers.items()}),
        "zero": lambda: blend("mia", ink, 0.0, other, 0.0),
    }[case]()
    found = study([ink, replace(mia, name="mia")])
    assert says in " ".join(found.pair_advice[: 2 if case in ("same", "overlap") else 1]), found.pair_advice
    assert json.loads(json.dumps(found.to_dict()))["advice"] == list(found.advice)


@pytest.mark.parametrize(
    ("decay", "says"),
    [
        (0.6, r"^90 % of ink's energy fits in rank \d of 16: resizing to 3 keeps 95 %"),
        (1.0, "uses its full rank"),
    ],
)
def test_advice_on_one_lora(make_lora, decay, says):
    """How much of its rank it uses; the figure is that of the spectrum."""
    found = study([make_lora("ink", shapes=dict.fromkeys(UNET, (200, 200)), rank=16, decay=decay)])
    (sentence,) = found.advice
    assert re.search(says, sentence), sentence
    assert f"rank {found.spectra[0].whole.rank_for(0.9)} of 16" in sentence


def test_the_view_of_one_lora_is_its_spectrum(make_lora):
    """A comparison needs two; a misspelled view is refused."""
    one = study([make_lora()])
    assert (one.view(), one.view("sign_conflict"), one.view("norms")) == ("spectrum", "spectrum", "norms")
    assert study([make_lora("a"), make_lora("b", seed=1)]).view() == "similarity"
    with pytest.raises(ParameterError, match="did you mean 'spectrum'"):
        one.view("spektrum")


def test_energy_kept_by_a_merge(make_lora):
    """The share of the whole squared norm, not the mean of the layers' shares."""
    loras = [make_lora(n, shapes=UNET, rank=6, seed=i, decay=0.8) for i, n in enumerate("ab")]
    exact, cut = merge(loras), merge(loras, rank=3)
    whole = sum(float(exact.delta(name).double().square().sum()) for name in exact.layers)
    left = sum(float(cut.delta(name).double().square().sum()) for name in cut.layers)
    assert cut.energy_kept == pytest.approx(left / whole, rel=1e-4)
    assert exact.energy_kept == merge(loras, method="ties").energy_kept == 1.0
