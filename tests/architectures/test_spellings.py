"""Spellings of one model outside ComfyUI: guessed, met, or refused with one sentence."""

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import save_file

import merge_ops
from merge_ops.cli import main
from merge_ops.formats import from_tensors
from merge_ops.formats.converted import as_diffusers_names
from merge_ops.models.diffusers import patched
from merge_ops.names.noise_experts import across_experts
from merge_ops.names.original import diffusers_names, pieces
from merge_ops.names.parts import flat_name
from merge_ops.names.recognise import guess
from tests.architectures import keys
from tests.architectures.configs import COMFYUI
from tests.architectures.through_diffusers import file_of

SAME = {"chroma": "flux", "wan_t2v": "wan", "wan_i2v": "wan"}
SPLIT = ("sd3", "flux", "flux2", "chroma", "wan_t2v", "wan_i2v", "hunyuan", "lumina2", "auraflow", "pixart")
KOHYA = ".lora_down.weight", ".lora_up.weight"
PEFT = ".lora_A.weight", ".lora_B.weight"


def layers_of(stem_of, roles, shapes, seed, rank=2):
    """A state dict with random factors for ``{name: (out, in)}``, spelled by ``stem_of``."""
    random, tensors = torch.Generator().manual_seed(seed), {}
    for name, (rows, columns) in shapes.items():
        tensors[stem_of(name) + roles[0]] = torch.randn(rank, columns, generator=random)
        tensors[stem_of(name) + roles[1]] = torch.randn(rows, rank, generator=random)
    return tensors


def kohya(name):
    return "lora_unet_" + name.replace(".", "_")


@pytest.mark.parametrize("architecture", COMFYUI)
def test_the_architecture_is_guessed(architecture):
    """From every spelling of the full list, with the structure of its names."""
    for spelling in keys.spellings(architecture):
        tensors = {}
        for stem, (_, shape) in keys.stems(architecture, spelling).items():
            up, down = keys.sizes(shape, 1)
            tensors[stem + spelling.up] = torch.zeros(1).expand(up)
            tensors[stem + spelling.down] = torch.zeros(1).expand(down)
        found = guess(from_tensors("file", tensors))
        assert found is not None, spelling.label
        assert found.name == SAME.get(architecture, architecture), spelling.label
        original = architecture in SPLIT and spelling.source == "comfyui"
        fused = architecture == "zimage" and spelling.source == "comfyui"
        assert (found.structure == "original") == (original or fused), spelling.label


WAN = {"blocks.0.self_attn.q": (24, 16), "blocks.0.ffn.0": (32, 16), "blocks.11.cross_attn.o": (16, 16)}


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
@pytest.mark.parametrize("prefix", ["diffusion_model.", "", "transformer.", "base_model.model."])
def test_dots_and_prefixes_do_not_matter(prefix, method):
    """Kohya's names and dotted ones meet, and the result is that of one spelling; masks follow the file."""
    flat = from_tensors("a", layers_of(kohya, KOHYA, WAN, 1))
    dotted = from_tensors("b", layers_of(lambda name: prefix + name, PEFT, WAN, 2))
    same = merge_ops.Lora("b", {n: next(la for d, la in dotted.layers.items() if flat_name(d) == flat_name(n))
                                for n in flat.layers}, origin=dotted)  # fmt: skip
    more = {} if method == "linear" else {"density": 0.5}
    mixed, one = (merge_ops.merge([flat, other], [0.7, 0.4], method, **more) for other in (dotted, same))
    assert len(mixed.layers) == len(WAN)
    if method != "dare_ties":  # its masks also follow the name of a layer
        for name in mixed.layers:
            twin = next(other for other in one.layers if flat_name(other) == flat_name(name))
            assert torch.equal(mixed.delta(name), one.delta(twin))


FLUX = {
    "double_blocks.0.img_attn.qkv": (9216, 3072),
    "double_blocks.0.img_attn.proj": (3072, 3072),
    "single_blocks.0.linear1": (21504, 3072),
}
SPLIT_FLUX = {
    "transformer_blocks.0.attn.to_q": (3072, 3072),
    "transformer_blocks.0.attn.to_out.0": (3072, 3072),
    "single_transformer_blocks.0.proj_mlp": (12288, 3072),
}


@pytest.fixture
def two_structures(tmp_path):
    """A Flux LoRA by kohya and one by diffusers, on the same weights."""
    files = tmp_path / "kohya.safetensors", tmp_path / "split.safetensors"
    save_file(layers_of(kohya, KOHYA, FLUX, 1), files[0])
    save_file(layers_of(lambda name: f"transformer.{name}", PEFT, SPLIT_FLUX, 2), files[1])
    return files


def test_two_structures_are_not_merged_apart(two_structures):
    """A refusal that says what to do; done, slices of the fused weight meet."""
    with pytest.raises(merge_ops.IncompatibleLoraError, match=r"load\(path, architecture='flux'\)"):
        merge_ops.merge([merge_ops.load(file) for file in two_structures])
    fused = merge_ops.load(two_structures[0]).layers["unet.double_blocks_0_img_attn_qkv"].matrix()
    a, b = (merge_ops.load(file, architecture="flux") for file in two_structures)
    merged = merge_ops.merge([a, b])
    name = "transformer.transformer_blocks.0.attn.to_q"
    assert len(merged.layers) == 3 + 1 + 4
    assert torch.allclose(merged.delta(name), fused[:3072] + b.layers[name].matrix(), atol=1e-4)


def test_the_command_line_brings_them_together(two_structures, tmp_path):
    """Without a flag."""
    out = tmp_path / "both.safetensors"
    assert main(["merge", *map(str, two_structures), "-o", str(out)]) == 0
    assert len(merge_ops.load(out).layers) == 8


def test_unknown_architecture():
    """One sentence, with the name that was meant."""
    with pytest.raises(merge_ops.ParameterError, match="flux"):
        merge_ops.load(__file__, architecture="fluxx")


def test_a_kohya_file_on_a_diffusers_model(tmp_path):
    """Refused with what to do; then the weights get what stock diffusers adds."""
    model = FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    shapes = {"double_blocks.0.img_attn.qkv": (96, 32), "double_blocks.0.txt_mlp.0": (128, 32)}
    tensors = layers_of(kohya, KOHYA, shapes, 3)
    tensors |= {f"{kohya(name)}.alpha": torch.tensor(1.0) for name in shapes}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(merge_ops.IncompatibleLoraError, match="architecture='flux'"):
        patched(model, merge_ops.merge([merge_ops.load(tmp_path / "a.safetensors")]))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with patched(model, merge_ops.merge([merge_ops.load(tmp_path / "a.safetensors", "auto")])) as patch:
        after = {key: value.clone() for key, value in model.state_dict().items()}
        assert len(patch.matched) == 4 and not patch.unmatched
    model.load_lora_adapter(FluxPipeline.lora_state_dict(dict(tensors)), prefix="transformer")
    changed = 0
    for path, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            key = f"{path}.weight"
            delta = module.get_delta_weight("default_0").detach()
            assert torch.allclose(after[key], before[key] + delta, atol=1e-5), path
            changed += 1
    assert changed == 4


@pytest.mark.parametrize("architecture", ["wan_t2v", "wan_i2v", "hunyuan", "lumina2", "flux2"])
def test_our_names_are_those_of_diffusers_converters(architecture):
    """For the models whose diffusers names we add to ComfyUI's maps: the same layer, the same rows."""
    blocks = (
        "blocks.0.",
        "double_blocks.0.",
        "single_blocks.0.",
        "layers.0.",
        "noise_refiner.0.",
        "context_refiner.0.",
    )
    names = [name for name in keys.shapes(architecture, "comfyui") if name.startswith(blocks)]
    plain = keys.Spelling("", "comfyui", lambda name: f"diffusion_model.{name}" if name in names else None)
    lora = from_tensors("file", file_of(plain, keys.stems(architecture, plain)))
    found = guess(lora)
    wanted = {"wan_t2v": "wan", "wan_i2v": "wan"}.get(architecture, architecture)
    converted = {flat_name(name): la for name, la in as_diffusers_names(lora, wanted).layers.items()}
    assert found is not None
    image_model, seen = COMFYUI[architecture][2]["image_model"], 0
    for name in names:
        layer = lora.layers[f"diffusion_model.{name}"]
        theirs = diffusers_names(image_model, name)
        for other, (start, length) in zip(
            theirs, pieces(len(theirs), layer.weight_shape) if theirs else (), strict=True
        ):
            met = converted[flat_name(f"unet.{other}")]
            assert met.weight_shape[:2] == (length, layer.weight_shape[1]), other
            probe = torch.linspace(-1, 1, layer.down.shape[1])  # whole deltas would be gigabytes
            rows = layer.up[start : start + length] @ (layer.down @ probe)
            assert torch.allclose(met.scale * (met.up @ (met.down @ probe)), rows, rtol=1e-4, atol=1e-4), (
                other
            )
            seen += 1
    assert seen or architecture == "flux2"


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (("dance_high_noise", "dance_low_noise"), True),
        (("Wan2.2-T2V-HIGH", "Wan2.2-T2V-LOW"), True),
        (("fox-HighNoise", "fox-lowNoise"), True),
        (("a_high", "b_high"), False),
        (("highway", "glow_low"), False),
        (("a", "b_low_noise"), False),
        (("dance_high_noise", "walk_low_noise_v2"), True),
        (("wan22_high_style", "wan22_low_style"), True),
        (("high_detail", "low_light"), False),
        (("high_heels", "fox_low_noise"), False),
        (("high_heels", "low_heels_2"), False),
        (("dance_high", "walk_low"), False),
        (("high_noises", "low_noise"), False),
    ],
)
def test_experts_of_wan(names, warned):
    """LoRAs of both experts of Wan 2.2 give a warning that names them."""
    loras = [from_tensors(name, layers_of(kohya, KOHYA, WAN, i)) for i, name in enumerate(names)]
    report = merge_ops.merge(loras).report
    assert any("expert of Wan 2.2" in warning for warning in report.warnings) == warned
    assert bool(across_experts(loras)) == warned


def test_no_experts_of_other_models():
    """Anima names its blocks as Wan does, and has one model: names of its LoRAs say nothing about experts."""
    stems = [f"diffusion_model.blocks.{n}.{part}" for n in range(2) for part in (
        "self_attn.q_proj", "self_attn.output_proj", "cross_attn.v_proj", "mlp.layer1")]  # fmt: skip
    tensors = {
        f"{stem}.lora_{half}.weight": torch.ones(shape)
        for stem in stems
        for half, shape in (("A", (2, 8)), ("B", (8, 2)))
    }
    for names in (("high_noise", "low_noise"), ("x_high_noise", "x_low_noise"), ("high_detail", "low_light")):
        loras = [from_tensors(name, tensors) for name in names]
        assert not across_experts(loras)
