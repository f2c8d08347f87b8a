"""Second moments against inputs captured by hand, and what the calibrated merge makes of them."""

import pytest
import torch
import torch.nn.functional as F

from merge_ops import learning, merge
from merge_ops.merging.cores import stacked_factors
from merge_ops.models.diffusers import finder, patched

LINEAR = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.up_blocks.1.resnets.0.conv1"
pytestmark = pytest.mark.usefixtures("unchanged")


@pytest.fixture(scope="module")
def three(studio):
    """Two LoRAs of attention, and one that also has convolutions."""
    return [studio.loras[name] for name in ("six", "neon", "outline")]


@pytest.fixture(scope="module")
def recorded(record, three):
    """Their recording."""
    return record(three, seed=2)


@pytest.fixture(scope="module")
def seen(recorded, host, three):
    """Its moments."""
    return learning.moments(recorded, host, three)


def inputs_of(studio, layer, recording, role, merged):
    """What the module of a layer was given in the calls to learn from, with one LoRA in the model."""
    module, given = finder(studio.unet)(layer), []
    hook = module.register_forward_hook(lambda _module, args, _output: given.append(args[0]))
    with patched(studio.unet, merged), torch.no_grad():
        for sample in recording.part(role=role):
            studio.unet(*sample.args, **sample.kwargs)
    hook.remove()
    return module, given


@pytest.mark.parametrize("layer", [LINEAR, CONV])
def test_against_captured_inputs(layer, studio, recorded, three, seen):
    """``z z^T`` of the stacked downs' outputs, each LoRA alone on its own calls; a convolution unfolded."""
    aligned = merge(three).layers[layer].aligned
    _, down, ranks = stacked_factors(aligned, None)
    assert seen[layer].shape == (len(ranks), sum(ranks), sum(ranks))
    for part, role in enumerate(aligned.indices):
        module, given = inputs_of(studio, layer, recorded, role, merge([three[role]]))
        if layer == CONV:
            given = [
                F.unfold(x, module.kernel_size, padding=module.padding, stride=module.stride) for x in given
            ]
            columns = torch.cat([x.transpose(0, 1).flatten(1) for x in given], dim=1)
        else:
            columns = torch.cat([x.flatten(0, -2) for x in given]).T
        z = (down @ columns).double()
        wanted = z @ z.T
        assert torch.allclose(seen[layer][part].double(), wanted, rtol=1e-3, atol=1e-4 * float(wanted.max()))


def test_held_out_calls_are_not_used(record, three, host, seen):
    """Moments come from the calls to learn from: with all of them the sums are larger."""
    whole = learning.moments(record(three, held_out=0), host, three)
    for name, sums in seen.items():
        energy, more = (each.diagonal(dim1=1, dim2=2).sum() for each in (sums, whole[name]))
        assert float(energy) < 0.999 * float(more), name


def test_calibrated_keeps_more_than_the_sum(studio, record, host):
    """Four LoRAs, each on one prompt; ``merge`` with the moments is the same merge, bit for bit."""
    loras = [studio.loras[name] for name in ("six", "seven", "neon", "slant")]
    recording = record(loras)
    calibrated = learning.calibrate(recording, host, loras[::-1])
    kept, plain = (learning.retention(recording, host, each) for each in (calibrated, merge(loras)))
    assert kept.mean > plain.mean + 0.05
    by_hand = merge(loras, method="calibrated", moments=learning.moments(recording, host, loras))
    for name in by_hand.layers:
        assert torch.equal(by_hand.delta(name), calibrated.delta(name)), name
    assert sum(by_hand.layers[LINEAR].aligned.ranks) == by_hand.factors(LINEAR)[0].shape[1]


def test_alone_is_itself(studio, record, host, pair):
    """One LoRA calibrated alone is that LoRA."""
    recording = record(pair[:1], weights=[0.7])
    calibrated, plain = learning.calibrate(recording, host, pair[:1]), merge(pair[:1], [0.7])
    for name in plain.layers:
        assert torch.allclose(calibrated.delta(name), plain.delta(name), atol=1e-6), name
