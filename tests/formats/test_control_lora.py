"""Control LoRAs for Flux: norms that are replaced, biases, and an input layer wider than the model's."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import merge_ops
from merge_ops.formats import from_tensors, load

# Black Forest Labs' module -> diffusers', with (out, in)
MODULES = {
    "img_in": ("x_embedder", 48, 128),
    "double_blocks.0.img_attn.proj": ("transformer_blocks.0.attn.to_out.0", 48, 48),
    "single_blocks.0.linear2": ("single_transformer_blocks.0.proj_out", 48, 96),
}
NORMS = {
    "double_blocks.0.img_attn.norm.key_norm": "transformer_blocks.0.attn.norm_k",
    "double_blocks.0.txt_attn.norm.query_norm": "transformer_blocks.0.attn.norm_added_q",
    "single_blocks.0.norm.key_norm": "single_transformer_blocks.0.attn.norm_k",
}
# spelling -> (of a module, of a norm's key)
SPELLINGS = {
    "bfl": (lambda name, _: name, lambda name, _: f"{name}.scale"),
    "generic": (lambda name, _: f"diffusion_model.{name}", lambda name, _: f"diffusion_model.{name}.scale"),
    "diffusers": (lambda _, name: f"transformer.{name}", lambda _, name: f"transformer.{name}.weight"),
    "bare diffusers": (lambda _, name: name, lambda _, name: f"{name}.weight"),
}


def control(spelling="bfl", norms=True, sizes=None):
    """The tensors of a control LoRA; the same numbers in every spelling."""
    random, (module, norm) = torch.Generator().manual_seed(0), SPELLINGS[spelling]

    def noise(*shape):
        return torch.randn(shape, generator=random) * 0.1

    tensors = {}
    for name, (other, o, i) in (sizes or MODULES).items():
        stem = module(name, other)
        tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = noise(4, i), noise(o, 4)
        tensors[f"{stem}.lora_B.bias"] = noise(o)
    for name, other in NORMS.items() if norms else ():
        tensors[norm(name, other)] = noise(16) + 1
    return tensors


def plain(stem="lora_unet_img_in"):
    """A LoRA on the input as the model has it, and on one more layer."""
    random = torch.Generator().manual_seed(1)
    other = stem.replace("img_in", "single_blocks_0_linear2").replace(
        "x_embedder", "single_transformer_blocks.0.proj_out"
    )
    tensors = {}
    for name, columns in ((stem, 64), (other, 96)):
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, columns, generator=random)
        tensors[f"{name}.lora_up.weight"] = torch.randn(48, 2, generator=random)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    return tensors


def input_of(lora):
    return next(layer for name, layer in lora.layers.items() if name.endswith(("img_in", "x_embedder")))


def run(*args):
    done = subprocess.run(
        [sys.executable, "-m", "merge_ops", *map(str, args)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_everything_in_it_is_read(spelling):
    """Three layers with biases, three norms, and what becomes of the input: nothing is left out."""
    lora = from_tensors("canny", control(spelling))
    assert len(lora.layers) == 6 and len(lora.whole_weights) == 3 and not lora.unmerged
    assert sum(name.endswith(".bias") for name in lora.layers) == 3
    assert input_of(lora).padded_to == (48, 128)
    first = control(spelling)[next(key for key in control(spelling) if "norm" in key)]
    assert any(torch.equal(weight.value, first) for weight in lora.whole_weights.values())


def test_norms_of_other_files_are_no_control_lora():
    """Whole weights without a LoRA are a checkpoint, and SD3's norms are none that diffusers would set."""
    with pytest.raises(merge_ops.LoraFormatError, match="no LoRA"):
        from_tensors("flux", {f"{name}.scale": torch.ones(16) for name in NORMS})
    stem = "transformer.transformer_blocks.0.attn"
    pair = {f"{stem}.to_q.lora_A.weight": torch.ones(2, 8), f"{stem}.to_q.lora_B.weight": torch.ones(8, 2)}
    lora = from_tensors("sd3", pair | {f"{stem}.norm_q.weight": torch.ones(8)})
    assert not lora.whole_weights and lora.unmerged


@pytest.mark.parametrize(
    ("spelling", "stem", "norms"),
    [
        ("bfl", "lora_unet_img_in", True),
        ("generic", "diffusion_model.img_in", True),
        ("diffusers", "transformer.x_embedder", True),
        ("diffusers", "transformer.x_embedder", False),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_beside_a_plain_lora(spelling, stem, norms, turned):
    """The narrow change is in the first 64 columns, for sums and for every other method."""
    loras = [from_tensors("canny", control(spelling, norms)), from_tensors("plain", plain(stem))]
    narrow = torch.nn.functional.pad(input_of(loras[1]).delta(), (0, 64))
    wanted = input_of(loras[0]).delta() - 0.5 * narrow
    weights = [1.0, -0.5]
    if turned:
        loras, weights = loras[::-1], weights[::-1]
    merged = merge_ops.merge(loras, weights)
    name = next(name for name in merged.layers if name.endswith(("img_in", "x_embedder")))
    assert torch.allclose(merged.delta(name), wanted, atol=1e-5)
    for method in merge_ops.METHODS.values():
        if not method.needs_recording:
            delta = merge_ops.merge(loras, weights, method.name).delta(name)
            assert delta.shape == (48, 128) and delta[:, 64:].abs().max() > 0, method.name
    cut = merge_ops.merge(loras, weights, "ties", rank=3)
    assert cut.layer(name).padded_to == cut.layer(name).fixed.padded_to == (48, 128)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("form", ["auto", "kohya", "diffusers"])
@pytest.mark.parametrize("spelling", ["bfl", "diffusers"])
def test_saved_and_read_again(spelling, form, beside, tmp_path):
    """Every weight comes back, and the file says that the input is widened, or has diffusers' name for it."""
    stem = "lora_unet_img_in" if spelling == "bfl" else "transformer.x_embedder"
    loras = [from_tensors("canny", control(spelling))] + [from_tensors("plain", plain(stem))] * beside
    merged = merge_ops.merge(loras, [0.7, 0.4][: len(loras)])
    merge_ops.save(merged, tmp_path / "out.safetensors", format=form, dtype=torch.float32)
    again = load(tmp_path / "out.safetensors")
    found = merge_ops.merge([again])
    deltas = sorted(float(merged.delta(name).norm()) for name in merged.layers)
    assert sorted(float(found.delta(name).norm()) for name in found.layers) == pytest.approx(deltas, rel=1e-4)
    assert len(again.whole_weights) == 3 and not again.unmerged
    assert input_of(again).padded_to == (48, 128)


def test_the_command_line(tmp_path):
    """merge, resize and inspect, with Black Forest Labs' own file."""
    save_file(control(), tmp_path / "canny.safetensors")
    save_file(plain(), tmp_path / "plain.safetensors")
    both = tmp_path / "both.safetensors"
    run("merge", tmp_path / "canny.safetensors", f"{tmp_path / 'plain.safetensors'}:0.5", "-o", both)
    keys = load_file(both)
    assert sum(key.endswith(".set_weight") for key in keys) == 3
    assert [key for key in keys if key.endswith("img_in.reshape_weight")]
    small = tmp_path / "small.safetensors"
    run("resize", tmp_path / "canny.safetensors", "--rank", "2", "-o", small)
    lora = load(small)
    assert input_of(lora).rank == 2 and input_of(lora).padded_to == (48, 128) and len(lora.whole_weights) == 3
    assert "canny" in run("inspect", tmp_path / "canny.safetensors")


SIZES = {
    "img_in": ("x_embedder", 3072, 128),
    "double_blocks.0.img_attn.qkv": ("transformer_blocks.0.attn.to_qkv", 9216, 3072),
    "single_blocks.0.linear2": ("single_transformer_blocks.0.proj_out", 3072, 15360),
}


def test_diffusers_names_of_bfl_s_file(tmp_path):
    """With ``architecture``: biases are cut as their weights are, norms renamed, the input still widens."""
    pytest.importorskip("diffusers")
    tensors = control(sizes=SIZES)
    save_file(tensors, tmp_path / "canny.safetensors")
    lora = load(tmp_path / "canny.safetensors", architecture="flux")
    assert {f"transformer.{other}" for other in NORMS.values()} == lora.whole_weights.keys()
    assert lora.layers["transformer.x_embedder"].padded_to == (3072, 128)
    rows = tensors["double_blocks.0.img_attn.qkv.lora_B.bias"][3072:6144]
    assert torch.equal(lora.layers["transformer.transformer_blocks.0.attn.to_k.bias"].matrix()[:, 0], rows)
    merge_ops.save(merge_ops.merge([lora]), tmp_path / "out.safetensors", format="diffusers")


def test_diffusers_loads_what_is_saved(tmp_path):
    """Stock diffusers widens the input, sets the norms and adds the biases as our merge says."""
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=32, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    sizes = MODULES | {"single_blocks.0.linear2": ("single_transformer_blocks.0.proj_out", 48, 240)}
    merged = merge_ops.merge([from_tensors("canny", control("diffusers", sizes=sizes))], [0.5])
    merge_ops.save(merged, tmp_path / "out.safetensors", format="diffusers", dtype=torch.float32)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(merge_ops.IncompatibleLoraError, match="widens the model's weight"):
        from merge_ops.models.diffusers import patched

        patched(model, merged)
    parts = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = diffusers.FluxControlPipeline(transformer=model, **parts)
    pipe.load_lora_weights(str(tmp_path / "out.safetensors"))
    pipe.fuse_lora()
    after = {key.replace(".base_layer", ""): weight for key, weight in pipe.transformer.state_dict().items()}
    for name in merged.layers:
        path = name.removeprefix("transformer.")
        key = path if path.endswith(".bias") else f"{path}.weight"
        own = before[key]
        if path == "x_embedder":
            own = torch.nn.functional.pad(own, (0, 64))
        assert torch.allclose(after[key], own + merged.delta(name).reshape(own.shape), atol=1e-5), name
    for name, weight in merged.whole_weights.items():
        assert torch.equal(after[f"{name.removeprefix('transformer.')}.weight"], weight.value)
