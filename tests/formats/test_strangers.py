"""LoRAs of different models share no layer, and the warning says which models they are for."""

import torch

import merge_ops


def test_the_models_are_named(write):
    stems = {
        "sd15": "lora_unet_down_blocks_0_attentions_0_proj_in",
        "flux": "lora_unet_double_blocks_0_img_attn_proj",
    }
    loras = [
        merge_ops.load(
            write(
                {f"{stem}.lora_down.weight": torch.ones(2, 8), f"{stem}.lora_up.weight": torch.ones(8, 2)},
                None,
                f"{name}.safetensors",
            )
        )
        for name, stem in stems.items()
    ]
    (warning,) = merge_ops.merge(loras).outline.warnings
    assert "sd15 and flux share no layer" in warning
    assert "sd15 is for Stable Diffusion" in warning
    assert "flux for" in warning and "Flux" in warning
