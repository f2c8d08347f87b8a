"""The scale of a layer, however a file says it, against hand-written algebra and real PEFT and diffusers."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import GPT2Config, GPT2LMHeadModel

import merge_ops

STEM = "lora_unet_mid_block_resnets_0_conv1"
NAME = "unet.mid_block.resnets.0.conv1"


def only_layer(lora):
    (layer,) = lora.layers.values()
    return layer


@pytest.mark.parametrize(
    ("alpha", "scale"), [(None, 1.0), (4, 1.0), (1, 0.25), (6, 1.5), (0, 0.0), (-2, -0.5)]
)
def test_kohya_alpha(alpha, scale, write, kohya_tensors, product):
    tensors = kohya_tensors({STEM: (12, 10)}, alpha=alpha)
    layer = only_layer(merge_ops.load(write(tensors)))
    up, down = tensors[f"{STEM}.lora_up.weight"], tensors[f"{STEM}.lora_down.weight"]
    assert layer.scale == scale
    torch.testing.assert_close(layer.delta(), product(up, down, scale))


def test_alpha_of_one_value_in_any_dtype_and_shape(write, kohya_tensors):
    tensors = kohya_tensors({STEM: (12, 10)})
    for alpha in (torch.tensor([2.0]), torch.tensor(2), torch.tensor([[2]], dtype=torch.bfloat16)):
        assert only_layer(merge_ops.load(write(tensors | {f"{STEM}.alpha": alpha}))).scale == 0.5


def test_convolution(write, kohya_tensors, product):
    tensors = kohya_tensors({STEM: (12, 10, 3, 3)}, alpha=2)
    layer = only_layer(merge_ops.load(write(tensors)))
    assert (layer.layout, layer.kernel, layer.weight_shape) == ("conv", (3, 3), (12, 10, 3, 3))
    up, down = tensors[f"{STEM}.lora_up.weight"], tensors[f"{STEM}.lora_down.weight"]
    torch.testing.assert_close(layer.delta(), product(up, down, 0.5))


def test_tucker_core(write):
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(12, 4, 1, 1, generator=generator), torch.randn(4, 10, 1, 1, generator=generator)
    mid = torch.randn(4, 4, 3, 3, generator=generator)
    tensors = {f"{STEM}.lora_up.weight": up, f"{STEM}.lora_down.weight": down, f"{STEM}.lora_mid.weight": mid}
    layer = only_layer(merge_ops.load(write(tensors | {f"{STEM}.alpha": torch.tensor(8.0)})))
    expected = 2 * torch.einsum(
        "oa,abhw,bi->oihw", *(t.double() for t in (up[..., 0, 0], mid, down[..., 0, 0]))
    )
    torch.testing.assert_close(layer.delta(), expected.float())


def tiny_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16))


def plain_blocks():
    """GPT-2's names for the two linear layers of a block, without its transposed weights."""

    def tree(**children):
        return torch.nn.ModuleDict(children)

    blocks = {
        str(i): tree(
            attn=tree(c_attn=torch.nn.Linear(8, 12, bias=False)), mlp=tree(c_fc=torch.nn.Linear(12, 8))
        )
        for i in range(2)
    }
    return tree(transformer=tree(h=tree(**blocks)))


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 16},
        {"r": 4, "lora_alpha": 16, "use_rslora": True},
        {"r": 4, "lora_alpha": 3, "rank_pattern": {"c_fc": 2, r"h\.1\.attn\.c_attn": 6}},
        {"r": 4, "lora_alpha": 3, "alpha_pattern": {"^transformer.h.0.attn.c_attn": 5, "attn.c_attn": 7}},
        {"r": 4, "lora_alpha": 3, "rank_pattern": {"c_fc": 9}, "alpha_pattern": {"1.mlp.c_fc": 1},
         "use_rslora": True},
    ],
)  # fmt: skip
@pytest.mark.parametrize("transposed", [True, False])
def test_peft_folder_against_peft(config, transposed, tmp_path, adapter_deltas):
    """GPT-2 with its transposed weights and an embedding, or the plain linear layers of a Llama."""
    if transposed:
        base, targets = tiny_gpt2(), ["c_attn", "c_fc", "wte"]
    else:
        base, targets = plain_blocks(), ["c_attn", "c_fc"]
    asked = LoraConfig(**config, target_modules=targets, fan_in_fan_out=transposed, init_lora_weights=False)
    model = get_peft_model(base, asked)
    model.save_pretrained(tmp_path / "adapter")
    expected = adapter_deltas(model.base_model.model)
    lora = merge_ops.load(tmp_path / "adapter")
    assert lora.layers.keys() == expected.keys()
    assert len(expected) == (5 if transposed else 4)
    for name, delta in expected.items():
        torch.testing.assert_close(lora.layers[name].delta(), delta, msg=name)


def test_a_configuration_without_alpha_means_what_peft_takes_it_for(tmp_path, adapter_deltas):
    base = torch.nn.Sequential(torch.nn.Linear(8, 12))
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["0"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["0"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    plain = torch.nn.Sequential(torch.nn.Linear(8, 12))
    expected = adapter_deltas(PeftModel.from_pretrained(plain, tmp_path / "adapter"))
    layer = only_layer(merge_ops.load(tmp_path / "adapter"))
    torch.testing.assert_close(layer.delta(), expected["base_model.model.0"])


def test_weights_of_a_peft_folder_given_as_a_file(tmp_path):
    model = get_peft_model(tiny_gpt2(), LoraConfig(r=4, lora_alpha=16, target_modules=["c_attn"]))
    model.save_pretrained(tmp_path / "adapter")
    lora = merge_ops.load(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {layer.scale for layer in lora.layers.values()} == {4.0}
    assert {layer.layout for layer in lora.layers.values()} == {"fan_in_fan_out"}


def test_peft_folder_of_a_unet_equals_its_diffusers_twin(tmp_path, make_pipe):
    """The same adapter saved by PEFT and by diffusers, at a true scale of 4."""
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["to_k", "to_out.0"], init_lora_weights=False)
    unet = get_peft_model(make_pipe().unet, config)
    unet.save_pretrained(tmp_path / "folder")
    twin = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    twin = {key.removeprefix("base_model.model."): value for key, value in twin.items()}
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=twin, unet_lora_adapter_metadata=config.to_dict() | {"target_modules": []}
    )
    folder = merge_ops.load(tmp_path / "folder")
    file = merge_ops.load(tmp_path / "pytorch_lora_weights.safetensors")
    assert folder.layers.keys() == file.layers.keys()
    assert len(folder.layers) == 64
    for name, layer in folder.layers.items():
        assert layer.scale == file.layers[name].scale == 4.0
        assert torch.equal(layer.delta(), file.layers[name].delta())


@pytest.mark.parametrize("prefixed", [True, False])
def test_diffusers_metadata_against_diffusers(prefixed, tmp_path, make_pipe, adapter_deltas):
    """Files that diffusers wrote, of a UNet with and without prefix and of a text encoder."""
    pipe = make_pipe()
    pipe.unet.add_adapter(
        LoraConfig(
            r=4, lora_alpha=16, target_modules=["to_q", "proj_in", "conv1"], rank_pattern={"to_q": 2},
            alpha_pattern={"mid_block.attentions.0.proj_in": 1}, init_lora_weights=False,
        )
    )  # fmt: skip
    expected = {f"unet.{name}": delta for name, delta in adapter_deltas(pipe.unet).items()}
    if prefixed:
        config = LoraConfig(r=3, lora_alpha=1, target_modules=["q_proj", "fc1"], init_lora_weights=False)
        pipe.text_encoder.add_adapter(config)
        for name, delta in adapter_deltas(pipe.text_encoder).items():
            expected[f"text_encoder.text_model.{name.removeprefix('text_model.')}"] = delta
        parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
        StableDiffusionPipeline.save_lora_weights(
            tmp_path,
            **{
                f"{name}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(part))
                for name, part in parts.items()
            },
            **{
                f"{name}_lora_adapter_metadata": _jsonable(part.peft_config["default"])
                for name, part in parts.items()
            },
        )
    else:
        pipe.unet.save_lora_adapter(tmp_path)
    lora = merge_ops.load(tmp_path / "pytorch_lora_weights.safetensors")
    assert lora.layers.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(lora.layers[name].delta(), delta, msg=name)


def _jsonable(config):
    return {key: list(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
