"""Published files whose names say no part of a pipeline, or one that few programs know."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import merge_ops
from merge_ops.cli import main
from merge_ops.formats import from_tensors
from merge_ops.names.recognise import guess

LIGHTNING = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.img_mlp.net.0.proj")
# what a file is called, its modules, and what its names begin with in kohya's and in diffusers' format
FILES = {
    "Qwen-Image-Lightning": (LIGHTNING, "lora_unet_transformer_blocks_0_", "transformer."),
    "Wan-Animate": (("blocks.0.self_attn.q",), "lora_unet_blocks_0_", "diffusion_model."),
    "Wan, diffusers": (("blocks.0.attn1.to_q",), "lora_transformer_blocks_0_", "transformer."),
    "LTX": (("transformer_blocks.0.attn1.to_q",), "lora_unet_transformer_blocks_0_", "diffusion_model."),
    "Flux": (("double_blocks.0.img_attn.qkv",), "lora_unet_double_blocks_0_", "diffusion_model."),
    "Lumina": (("layers.0.attention.qkv",), "lora_unet_layers_0_", "diffusion_model."),
    "HiDream": (("double_stream_blocks.0.block.attn1.to_q",), "lora_unet_double_", "transformer."),
    "SD": (("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",), "lora_unet_down_", "unet."),
    "unknown": (("towers.0.mix",), "towers.0.mix.", ""),
}  # fmt: skip
PAIRS = pytest.mark.parametrize(
    ("down", "up"), [(".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")]
)
LANGUAGE = "model.layers.0.self_attn.q_proj"


def tensors_of(stems, down=".lora_A.weight", up=".lora_B.weight", size=16):
    """A small random LoRA on each stem."""
    tensors = {}
    for stem in stems:
        tensors |= {stem + down: torch.randn(4, size), stem + up: torch.randn(size, 4)}
    return tensors


@pytest.mark.parametrize("down", [".lora_A.weight", ".lora_down.weight", ".lora_A.default.weight"])
@pytest.mark.parametrize("label", FILES)
def test_every_format_is_written(label, down, tmp_path):
    """From the command line and from Python, with the prefix that readers of the format look for."""
    modules, kohya, diffusers = FILES[label]
    up = down.replace("lora_A", "lora_B").replace("down", "up")
    file, out = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    tensors = tensors_of(modules, down, up)
    save_file(tensors, file)
    for form, begin in (("kohya", (kohya,)), ("diffusers", tuple(diffusers + m for m in modules))):
        assert main(["merge", str(file), "-o", str(out), "--format", form, "--overwrite"]) == 0
        assert all(key.startswith(begin) for key in load_file(out))
        back = merge_ops.load(out)
        (name, *_), (layer, *_) = zip(*sorted(back.layers.items()), strict=True)
        assert len(back.layers) == len(modules), name
        first = tensors[sorted(modules)[0] + up] @ tensors[sorted(modules)[0] + down]
        assert torch.allclose(layer.matrix(), first, rtol=2e-2, atol=2e-2)
    assert main(["resize", str(file), "-o", str(out), "--rank", "2", "--overwrite"]) == 0
    assert {layer.rank for layer in merge_ops.load(out).layers.values()} == {2}
    merge_ops.save(merge_ops.merge([merge_ops.load(file)]), tmp_path / "folder", format="peft")
    written = load_file(tmp_path / "folder" / "adapter_model.safetensors")
    assert {key.partition(".lora_")[0] for key in written} == {f"base_model.model.{m}" for m in modules}


def test_the_published_file_meets_one_with_a_prefix():
    """One layer, not two beside each other."""
    lightning = from_tensors("lightning", tensors_of(LIGHTNING, ".lora_down.weight", ".lora_up.weight"))
    toolkit = from_tensors("toolkit", tensors_of(f"diffusion_model.{name}" for name in LIGHTNING))
    assert len(merge_ops.merge([lightning, toolkit]).layers) == 2


def test_layers_outside_the_blocks_belong_to_the_model_too():
    """Whose model it is is told by the other layers of the file."""
    lora = from_tensors("a", tensors_of((*LIGHTNING, "img_in", "proj_out")))
    assert all(name.startswith("transformer.") for name in lora.layers)
    wan = from_tensors("a", tensors_of(("blocks.0.self_attn.q", "head.head", "time_embedding.0")))
    assert all(name.startswith("diffusion_model.") for name in wan.layers)


def test_names_of_tencent_and_of_comfyui_are_of_one_model(tmp_path):
    """HunyuanVideo: dotted or not, the layers meet; what is saved has the names that both programs know."""
    modules = (
        "double_blocks.0.img_attn.qkv", "double_blocks.0.img_mlp.0", "double_blocks.0.txt_mod.lin",
        "single_blocks.0.modulation.lin", "txt_in.individual_token_refiner.blocks.0.mlp.2",
    )  # fmt: skip
    theirs = (
        "double_blocks.0.img_attn_qkv", "double_blocks.0.img_mlp.fc1", "double_blocks.0.txt_mod.linear",
        "single_blocks.0.modulation.linear", "txt_in.individual_token_refiner.blocks.0.mlp.fc2",
    )  # fmt: skip
    spelled = (
        [f"diffusion_model.{name}" for name in modules],
        [f"transformer.{name}" for name in theirs],
        [f"lora_unet_{name.replace('.', '_')}" for name in theirs],
        [f"Hunyuan_video_I2V_lora_{name.replace('.', '_')}" for name in theirs],
        list(theirs),
    )
    loras = [from_tensors(f"{i}", tensors_of(stems)) for i, stems in enumerate(spelled)]
    merged = merge_ops.merge(loras)
    assert len(merged.layers) == len(modules)
    assert guess(loras[-1]).name == "hunyuan"
    out = tmp_path / "out.safetensors"
    merge_ops.save(merge_ops.merge(loras[4:]), out, format="diffusers")
    stems = {key.partition(".lora_")[0] for key in load_file(out)}
    assert stems >= {f"diffusion_model.{name}" for name in theirs[:4]}


def test_ltx_is_saved_under_the_prefix_that_comfyui_knows(tmp_path):
    """Stock ComfyUI does not know transformer. in front of its names, and diffusers knows both."""
    name = "transformer_blocks.0.attn1.to_q"
    loras = [from_tensors("a", tensors_of([stem])) for stem in (f"transformer.{name}", name)]
    out = tmp_path / "out.safetensors"
    merge_ops.save(merge_ops.merge(loras), out, format="diffusers")
    assert all(key.startswith(f"diffusion_model.{name}.") for key in load_file(out))


@pytest.mark.parametrize("width", [1920, 3072])
def test_another_model_with_the_same_names_is_not_guessed(width, tmp_path):
    """CogVideoX has names of LTX-Video and another width; diffusers knows it by transformer."""
    lora = from_tensors("a", tensors_of(["transformer_blocks.0.attn1.to_q"], size=width))
    assert guess(lora) is None
    for form in ("kohya", "diffusers"):
        out = tmp_path / f"{form}.safetensors"
        merge_ops.save(merge_ops.merge([lora]), out, format=form)
        assert all(key.startswith("transformer.transformer_blocks.0.attn1.") for key in load_file(out))


def test_a_language_model_is_still_one(tmp_path):
    """Its names have no prefix either, and only a PEFT folder holds them."""
    lora = from_tensors("a", tensors_of((LANGUAGE,)))
    assert list(lora.layers) == [LANGUAGE]
    for form in ("kohya", "diffusers"):
        with pytest.raises(merge_ops.MergeError, match="text model"):
            merge_ops.save(merge_ops.merge([lora]), tmp_path / "a.safetensors", format=form)


@PAIRS
def test_a_trainers_own_prefix_is_replaced_by_the_usual_one(down, up, tmp_path):
    """Also where the words of the model are not known, so that its dots cannot be put back."""
    out = tmp_path / "out.safetensors"
    for module in ("double_blocks_0_img_attn_qkv", "joint_blocks_0_x_block_attn_qkv"):
        lora = from_tensors("a", tensors_of([f"Hunyuan_video_I2V_lora_{module}_"], down, up))
        merge_ops.save(merge_ops.merge([lora]), out, overwrite=True)
        assert all(key.startswith(f"lora_unet_{module}.") for key in load_file(out))


@PAIRS
def test_two_transformers_in_one_file(down, up, tmp_path):
    """Wan 2.2 in diffusers has transformer and transformer_2; kohya's format has no name for the second."""
    stems = ("transformer.blocks.0.attn1.to_q", "transformer_2.blocks.0.attn1.to_q")
    file, out = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    save_file(tensors_of(stems, down, up), file)
    assert main(["merge", str(file), "-o", str(out)]) == 0
    assert {key.partition(".lora_")[0] for key in load_file(out)} == set(stems)
    lora = merge_ops.load(file)
    assert guess(lora).name == "wan"
    with pytest.raises(merge_ops.MergeError, match="transformer_2, for which kohya files have no name"):
        merge_ops.save(merge_ops.merge([lora]), out, format="kohya", overwrite=True)


@pytest.mark.parametrize("number", [3, 4])
def test_encoders_of_hidream(number, tmp_path):
    """OneTrainer's lora_te3 and lora_te4 keep their names."""
    llama = f"lora_te{number}_model_layers_0_self_attn_q_proj"
    stems = (llama, "lora_transformer_double_stream_blocks_0_block_attn1_to_q")
    lora = from_tensors("a", tensors_of(stems, ".lora_down.weight", ".lora_up.weight"))
    assert f"text_encoder_{number}.model.layers.0.self_attn.q_proj" in lora.layers
    out = tmp_path / "out.safetensors"
    merge_ops.save(merge_ops.merge([lora], text_weights=[0.5]), out)
    assert any(key.startswith(f"{llama}.") for key in load_file(out))
    merged = merge_ops.merge([lora], blocks=[f"te{number}:0"])
    assert len(merged.layers) == 1


@pytest.mark.parametrize("component", ["prior", "connectors", "text_conditioner", "transformer_ref"])
def test_every_component_of_diffusers_pipelines(component, tmp_path):
    """Written as it came."""
    lora = from_tensors("a", tensors_of((f"{component}.blocks.0.attn.to_q",)))
    out = tmp_path / "out.safetensors"
    merge_ops.save(merge_ops.merge([lora]), out)
    assert all(key.startswith(f"{component}.") for key in load_file(out))


def test_all_components_that_diffusers_loads_are_known():
    """As many as there are in the version that is installed."""
    import diffusers.loaders.lora_pipeline as loaders

    from merge_ops.names.spelling import DOTTED_COMPONENTS

    found = {
        part for loader in vars(loaders).values() for part in getattr(loader, "_lora_loadable_modules", ())
    }
    assert len(found) > 3 and found <= set(DOTTED_COMPONENTS)


def test_modules_of_an_unknown_folder_are_refused_elsewhere(tmp_path):
    """A PEFT folder that is not of a language model says so, and how to save it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(tensors_of(("base_model.model.towers.0.mix",)), folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["mix"]}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    merged = merge_ops.merge([merge_ops.load(folder)])
    with pytest.raises(merge_ops.MergeError, match="format='peft'"):
        merge_ops.save(merged, tmp_path / "a.safetensors", format="kohya")


@pytest.mark.parametrize(
    ("stems", "titles"),
    [
        ([f"joint_transformer_blocks.{i}.attn.to_q" for i in range(4)], {"AuraFlow"}),
        ([f"single_transformer_blocks.{i}.attn.to_out.0" for i in range(3)], {"AuraFlow"}),
        ([f"single_transformer_blocks.{i}.attn.to_q" for i in range(38)], {"Flux"}),
        ([f"single_transformer_blocks.{i}.attn.to_q" for i in range(32)], {"Flux", "AuraFlow"}),
        ([f"transformer_blocks.{i}.attn.to_q" for i in range(19)], {"Flux", "Qwen-Image"}),
        ([f"transformer_blocks.{i}.attn.to_q" for i in range(60)], {"Qwen-Image"}),
        (["transformer_blocks.0.ff.net.2", "transformer_blocks.0.attn.to_q"], {"Flux"}),
    ],
)
def test_a_model_is_named_only_where_names_tell(stems, titles):
    """Attention of AuraFlow has the names of Flux's; what they share, both may be."""
    more = [f"single_transformer_blocks.{i}.attn.to_q" for i in range(32)] if "joint" in stems[0] else []
    found = guess(from_tensors("a", tensors_of([*stems, *more])))
    assert set(found.title.split(" or ")) == titles
