"""Random masks of LoRAs that are almost alike, such as checkpoints of one training, follow their content."""

from dataclasses import replace

import pytest
import torch

import merge_ops
from merge_ops import LowRank
from merge_ops.merging.align import align
from merge_ops.merging.request import Request

RANDOM = ("dare_linear", "dare_ties", "della")
WEIGHTS = ([1.0, 0.6], [1.0, 1.0], [0.6, -1.0], [1.0, -1.0])


def checkpoint(name, seed, apart, run=1):
    """One of several LoRAs that differ from the same one, that of the run, by a share ``apart`` of noise."""
    same, own = torch.Generator().manual_seed(run), torch.Generator().manual_seed(seed)

    def factor(*shape):
        return torch.randn(*shape, generator=same) + apart * torch.randn(*shape, generator=own)

    layers = {
        f"unet.mid_block.attentions.{i}.proj_in": LowRank(factor(48, 4), factor(4, 40)) for i in range(6)
    }
    return merge_ops.Lora(name, layers)


def rewritten(lora, dtype=torch.float32, alpha=1.0, pad=0):
    """The same deltas in another dtype, with another alpha and at a higher rank."""
    layers = {}
    for name, layer in lora.layers.items():
        up = torch.cat((layer.up / alpha, torch.zeros(layer.up.shape[0], pad)), dim=1)
        down = torch.cat((layer.down, torch.ones(pad, layer.down.shape[1])))
        layers[name] = replace(layer, up=up.to(dtype), down=down.to(dtype), scale=alpha)
    return replace(lora, name="rewritten", layers=layers)


def difference(a, b):
    """Relative to the second merge."""
    gap = sum(float((a.delta(name) - b.delta(name)).square().sum()) for name in b.layers)
    return (gap / sum(float(b.delta(name).square().sum()) for name in b.layers)) ** 0.5


def merge(loras, weights, method):
    return merge_ops.merge(loras, weights, method, density=0.3, seed=1)


@pytest.mark.parametrize("apart", [0.02, 0.005])
@pytest.mark.parametrize("method", RANDOM)
def test_renaming_checkpoints_changes_nothing(method, apart):
    """Also where names stand in another order afterwards."""
    for seed in range(5):
        a, b = checkpoint("style-000009", 100 + seed, apart), checkpoint("style-000010", 900 + seed, apart)
        renamed = [replace(a, name="final"), replace(b, name="earlier")]
        for weights in WEIGHTS:
            assert difference(merge(renamed, weights, method), merge([a, b], weights, method)) < 1e-6


@pytest.mark.parametrize("apart", [0.02, 0.005])
@pytest.mark.parametrize(
    ("how", "limit"),
    [({"alpha": 3.7, "pad": 3}, 1e-4), ({"dtype": torch.float16}, 0.02), ({"dtype": torch.bfloat16}, 0.03)],
    ids=["alpha and rank", "float16", "bfloat16"],
)
def test_rewriting_a_checkpoint_changes_no_more_than_it_loses(how, limit, apart):
    """Where both add the same, the two may change places: that costs no more than what tells them apart.

    One LoRA in a few hundred gets other masks by rounding, see ``fingerprint``.
    """
    changed = 0
    for run in range(20):
        a, b = (checkpoint(name, seed + run, apart, run) for name, seed in (("a", 100), ("b", 900)))
        changed += any(
            difference(
                merge([rewritten(a, **how), b], weights, "dare_linear"), merge([a, b], weights, "dare_linear")
            )
            >= limit
            for weights in ([1.0, 0.6], [1.0, 1.0])
        )
    assert changed <= (1 if "dtype" in how else 0)


def identities(loras, weights):
    request = Request.of(loras, weights, "dare_linear", density=0.3)
    return [dict(zip(layer.indices, layer.identities, strict=True)) for layer in align(loras, request)]


@pytest.mark.parametrize("apart", [0.3, 0.02, 0.005, 0.0])
def test_loras_on_one_side_have_masks_of_their_own(apart):
    """However alike: otherwise they would drop the same entries, and nothing would be averaged."""
    for seed in range(20):
        loras = [checkpoint(str(i), 100 * i + seed, apart) for i in range(3)]
        for weights in ([1.0, 0.6, 0.8], [1.0, 1.0, 1.0], [-1.0, -1.0, -0.5]):
            for layer in identities(loras, weights):
                assert len(set(layer.values())) == 3


def test_a_lora_subtracted_from_one_almost_alike_has_its_masks():
    """What is left is their difference, thinned out, and not drowned by entries that one of them lost."""
    a, b = checkpoint("a", 1, 0.005), checkpoint("b", 2, 0.005)
    opposite = replace(b, layers={name: layer.scaled(-1.0) for name, layer in b.layers.items()})
    for loras, weights in (([a, b], [1.0, -1.0]), ([a, opposite], [1.0, 1.0])):
        for layer in identities(loras, weights):
            assert len(set(layer.values())) == 1
        size = sum(
            float(delta.square().sum()) for delta in map(merge(loras, weights, "dare_linear").delta, a.layers)
        )
        exact = sum(float((a.layers[k].delta() - b.layers[k].delta()).square().sum()) for k in a.layers)
        assert size / exact == pytest.approx(1 / 0.3, rel=0.1)
    same = merge([a, replace(a, name="copy")], [0.7, -0.7], "dare_linear")
    assert all(torch.allclose(same.delta(name), torch.zeros(()), atol=1e-5) for name in same.layers)


def test_masks_do_not_depend_on_unrelated_loras():
    """The LoRA that is taken away takes nothing but its own part with it."""
    loras = [checkpoint(str(i), i, 10.0) for i in range(3)]
    alone = [merge([lora], [0.5], "dare_linear") for lora in loras]
    both = merge(loras, [0.5] * 3, "dare_linear")
    for name in both.layers:
        parts = torch.stack([each.delta(name) for each in alone]).sum(0)
        torch.testing.assert_close(both.delta(name), parts)
