"""Checks of learning with a base in half precision: the UNet is stored in fp16, bf16 or fp8."""

import comfy.model_management
import comfy.sd
import folder_paths
import torch
from comfy_inside import check, run
from learning_inside import SMALL, assert_as_before, fresh, state, text


def stored_as(dtype):
    """MODEL and CLIP of the tiny SD1.5 with the diffusion model's weights in a dtype."""
    path = folder_paths.get_full_path_or_raise("checkpoints", "tiny_sd15.safetensors")
    with torch.inference_mode():
        model = comfy.sd.load_checkpoint_guess_config(
            path, output_vae=False, output_clip=False, model_options={"dtype": dtype}
        )[0]
    found = {weight.dtype for weight in model.model.diffusion_model.parameters() if weight.ndim > 1}
    assert found == {dtype}, found
    return model


@check
def half_precision_bases():
    """Recorded, measured and trained with; afterwards the weights are the same bits in the same memory."""
    _, clip = fresh()
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        comfy.model_management.unload_all_models()
        model = stored_as(dtype)
        before = state(model)
        recording = run("LoraAlloyRecord", model=model, clip=clip, loras=text(), **SMALL)[0]
        lora, new_model, _, report, *_ = run(
            "LoraAlloyDistill", recording=recording, steps=6, batch=4, rank=8, seed=1, learning_rate=0.01
        )
        assert_as_before(model, before, objects=False)
        assert lora.merged.request.learned["best_step"]["denoiser"] > 0, (dtype, report)
        assert all(torch.isfinite(lora.merged.delta(name)).all() for name in lora.merged.layers)
        assert new_model.patches, dtype
