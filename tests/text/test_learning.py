"""Learning from adapters of every kind: those that depend on the base weight are trained as their delta."""

import pytest
import torch

from merge_ops import learning, load, merge
from merge_ops.learning.measured import squared_errors
from merge_ops.models.hosts import TransformersHost
from tests.text.folders import MODELS, lora, peft

LINEAR = ["q_proj", "down_proj"]
KINDS = {
    "dora": ("llama", lora(target_modules=LINEAR, use_dora=True)),
    "loha": ("llama", peft.LoHaConfig(r=2, alpha=2, target_modules=LINEAR)),
    "oft": ("llama", peft.OFTConfig(oft_block_size=4, target_modules=["q_proj"], use_cayley_neumann=False)),
    "biases": ("gpt2", lora(target_modules=["c_attn"], bias="lora_only", fan_in_fan_out=True)),
    "experts": ("mixtral", lora(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])),
    "norms": ("llama", peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_kinds(made, kind):
    """Recorded, measured, calibrated and distilled beside a plain LoRA; the result is low rank."""
    name, config = KINDS[kind]
    folder, _ = made(name, config)
    plain_targets = ["c_attn"] if name == "gpt2" else ["q_proj"]
    other, _ = made(name, lora(target_modules=plain_targets, fan_in_fan_out=name == "gpt2"), "other", seed=5)
    loras = [load(folder), load(other)]
    model = MODELS[name]().requires_grad_(False)
    host = TransformersHost(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 20, (12, 8), generator=generator) + start for start in (0, 20)]
    turn = iter(texts)

    with torch.no_grad():
        recording = learning.record(host, loras, lambda _: model(next(turn)), weights=[0.7, 0.7])
        for role, each in enumerate(loras):
            with host.applied(merge([each], [0.7], base=model)):
                assert max(squared_errors(host, recording.part(role=role))) < 1e-6
    linear = merge(loras, [0.7, 0.7], base=model)
    sums = learning.retention(recording, host, linear)
    calibrated = learning.calibrate(recording, host, loras)
    assert learning.retention(recording, host, calibrated).mean > sums.mean - 0.2
    distilled = learning.distill(recording, host, loras, steps=25, batch=12)
    assert learning.retention(recording, host, distilled).mean > sums.mean
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for layer in linear.layers:
        if layer.endswith("]"):  # one matrix of a larger parameter stays as in the sum
            assert torch.allclose(distilled.delta(layer), linear.delta(layer), atol=1e-6)
        else:
            assert distilled.layers[layer].is_low_rank, layer
    assert set(distilled.layers) == set(linear.layers)
