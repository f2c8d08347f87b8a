"""A merge on a diffusers transformer, given alone, against stock diffusers."""

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

import merge_ops
from merge_ops.models.diffusers import patched


def test_a_transformer_gets_what_its_adapter_adds(tmp_path):
    """Two LoRAs of a tiny Flux: patched weights against the sum of PEFT's own deltas."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    loras, deltas = [], {}
    for name, rank, weight in (("a", 2, 0.5), ("b", 4, -1.0)):
        targets = ["to_q", "to_k", "proj_mlp", "ff.net.2"]
        config = LoraConfig(r=rank, lora_alpha=3, target_modules=targets, init_lora_weights=False)
        model.add_adapter(config, adapter_name=name)
        state = get_peft_model_state_dict(model, adapter_name=name)
        tensors = {f"transformer.{key}": value.contiguous() for key, value in state.items()}
        tensors |= {
            key.replace("lora_A.weight", "alpha"): torch.tensor(3.0) for key in tensors if "lora_A" in key
        }
        save_file(tensors, tmp_path / f"{name}.safetensors")
        loras.append(merge_ops.load(tmp_path / f"{name}.safetensors"))
        for path, module in model.named_modules():
            if hasattr(module, "get_delta_weight"):
                deltas[path] = deltas.get(path, 0) + weight * module.get_delta_weight(name).detach()
    before = {
        path: module.base_layer.weight.clone() for path, module in model.named_modules() if path in deltas
    }
    with patched(model, merge_ops.merge(loras, weights=[0.5, -1.0])) as patch:
        assert len(patch.matched) == len(deltas) and not patch.unmatched
        for path, delta in deltas.items():
            weight = model.get_submodule(path).base_layer.weight
            assert torch.allclose(weight, before[path] + delta, atol=1e-6), path
    assert all(torch.equal(model.get_submodule(path).base_layer.weight, w) for path, w in before.items())
