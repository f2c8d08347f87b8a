"""What ComfyUI adds from the files that we write is what was merged; its names for layers are known to us."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import merge_ops
from merge_ops.names.spelling import canonical_name, kohya_name

FLUX = {
    "diffusion_model.double_blocks.0.img_attn.qkv": (192, 64),
    "diffusion_model.single_blocks.0.linear1": (320, 64),
}


def merged_pair(folder, first, second, **options):
    save_file(first, folder / "first.safetensors")
    save_file(second, folder / "second.safetensors")
    loras = [merge_ops.load(folder / f"{name}.safetensors") for name in ("first", "second")]
    return merge_ops.merge(loras, [0.7, -0.4], **options)


def sdxl_merge(folder, sdxl_shapes, kohya_tensors):
    """Under LDM names, as SDXL trainers write, at ranks 2, 3 and 5."""
    stems = {kohya_name(f"unet.{name}", ldm=True): shape for name, shape in sdxl_shapes.items()}
    everything = kohya_tensors(stems, (2, 3), 1.5, seed=3)
    attention = kohya_tensors({s: shape for s, shape in stems.items() if "attn2" in s}, (3,), 6, seed=4)
    return merged_pair(folder, everything, attention)


def sd15_ldm_merge(folder, kohya_tensors):
    """SD1.5 under LDM names: its first upsampler is not where SDXL has it."""
    stems = {
        "lora_unet_output_blocks_2_1_conv": (64, 64, 3, 3),
        "lora_unet_middle_block_1_proj_in": (64, 64, 1, 1),
    }
    return merged_pair(folder, kohya_tensors(stems, (2,), seed=5), kohya_tensors(stems, (2,), seed=6))


def flux_merge(folder, pair):
    def generic(seed, rank):
        tensors = {}
        for i, (stem, shape) in enumerate(FLUX.items()):
            up, down = pair(shape, rank + i, seed + i)
            tensors |= {f"{stem}.lora_B.weight": up, f"{stem}.lora_A.weight": down}
        return tensors

    return merged_pair(folder, generic(0, 2), generic(10, 3))


@pytest.fixture(scope="module")
def answers(comfyui, tmp_path_factory, sd15_files, sdxl_shapes, kohya_tensors, pair):
    """ComfyUI's tables of names, and for each file name ``(merge, what ComfyUI adds)``."""
    folder = tmp_path_factory.mktemp("merges")
    sd15 = [merge_ops.load(file) for file in sd15_files]
    generic = {
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.eye(2, 32),
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.eye(32, 2),
    }
    merges = {
        "sd15_linear_float32": merge_ops.merge(sd15, [0.7, -0.4]),
        "sd15_linear_float16": merge_ops.merge(sd15, [0.7, -0.4]),
        "sd15_linear_bfloat16": merge_ops.merge(sd15, [0.7, -0.4]),
        "sd15_ties_float16": merge_ops.merge(sd15, method="ties", rank=4),
        "sd15_generic_float32": merged_pair(folder, generic, generic),
        "sd15_ldm_float32": sd15_ldm_merge(folder, kohya_tensors),
        "sdxl_linear_float32": sdxl_merge(folder, sdxl_shapes, kohya_tensors),
        "flux_linear_float32": flux_merge(folder, pair),
    }
    for name, merged in merges.items():
        dtype = getattr(torch, name.rpartition("_")[2])
        merge_ops.save(merged, folder / f"{name}.safetensors", dtype=dtype)
    out, names = comfyui(*(folder / f"{name}.safetensors" for name in merges))
    return names, {name: (merged, load_file(out / f"{name}.safetensors")) for name, merged in merges.items()}


def comfyui_key(canonical, names):
    """ComfyUI's key of the weight of a layer, by ComfyUI's own table."""
    component, _, path = canonical.partition(".")
    if component == "text_encoder":
        return f"clip_l.transformer.{path}.weight"
    return f"diffusion_model.{names[f'{path}.weight']}" if component == "unet" else f"{canonical}.weight"


@pytest.mark.parametrize(
    ("file", "tolerance"),
    [
        ("sd15_linear_float32", 1e-5), ("sd15_linear_float16", 2e-3), ("sd15_linear_bfloat16", 2e-2),
        ("sd15_ties_float16", 2e-3), ("sd15_generic_float32", 1e-5), ("sd15_ldm_float32", 1e-5),
        ("sdxl_linear_float32", 1e-5), ("flux_linear_float32", 1e-5),
    ],
)  # fmt: skip
def test_comfyui_adds_what_was_merged(file, tolerance, answers):
    """Every layer of the file: UNet, text encoder, mixed ranks; a key that is not found fails the probe."""
    names, found = answers
    merged, deltas = found[file]
    table = names.get(file.partition("_")[0], {})
    keys = {comfyui_key(name, table): name for name in merged.layers}
    assert deltas.keys() == keys.keys()
    for key, delta in deltas.items():
        expected = merged.delta(keys[key])
        assert (delta - expected.reshape(delta.shape)).norm() <= tolerance * expected.norm(), key


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_ldm_names_against_comfyui(model, answers, request):
    """ComfyUI's table of LDM names leads to the same module of the diffusers UNet as ours."""
    shapes = request.getfixturevalue("unet_shapes" if model == "sd15" else "sdxl_shapes")
    table = {
        key.removesuffix(".weight"): ldm.removesuffix(".weight") for key, ldm in answers[0][model].items()
    }
    checked = 0
    for name in table.keys() & shapes.keys():
        for stem in (f"lora_unet_{table[name].replace('.', '_')}", f"diffusion_model.{table[name]}"):
            assert canonical_name(stem) == f"unet.{name}", stem
        checked += 1
    assert checked == len(shapes)
