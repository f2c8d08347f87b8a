"""What stock PEFT adds from the folders that we write is what was merged."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import CLIPTextConfig, CLIPTextModel, GPT2Config, GPT2LMHeadModel

import merge_ops
from merge_ops import MergeError


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16))


def clip():
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
        )
    )


def twins():
    """A model with a module whose whole name is the end of another's."""
    return torch.nn.ModuleDict(
        {"proj": torch.nn.Linear(8, 12), "block": torch.nn.ModuleDict({"proj": torch.nn.Linear(8, 12)})}
    )


MODELS = {"gpt2": (gpt2, ["c_attn", "c_fc", "wte"]), "clip": (clip, ["q_proj", "fc1"])}


def folder_of(base, path, targets, **config):
    torch.manual_seed(len(str(config)))
    model = get_peft_model(base, LoraConfig(target_modules=targets, init_lora_weights=False, **config))
    model.save_pretrained(path)
    return merge_ops.load(path)


def assert_peft_adds_it(base, folder, merged, adapter_deltas, tolerance=1e-5):
    """Every layer, and nothing missing in the file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, folder)
    assert not [str(w.message) for w in caught if "keys" in str(w.message)]
    found = adapter_deltas(model.base_model.model)
    expected = {
        merged.layer(name).template.key.removeprefix("base_model.model."): name for name in merged.layers
    }
    if not found.keys() <= expected.keys():  # the sources are no PEFT folders
        expected = {name.partition(".")[2]: name for name in merged.layers}
    assert found.keys() == expected.keys()
    for path, delta in found.items():
        wanted = merged.delta(expected[path])
        assert (delta - wanted).norm() <= tolerance * wanted.norm(), path


@pytest.mark.parametrize("name", MODELS)
def test_mixed_ranks_and_alphas(name, tmp_path, adapter_deltas):
    make, targets = MODELS[name]
    transposed = name == "gpt2"
    a = folder_of(make(), tmp_path / "a", targets, r=4, lora_alpha=16, fan_in_fan_out=transposed)
    b = folder_of(
        make(), tmp_path / "b", targets[:1], r=2, lora_alpha=3, use_rslora=True,
        rank_pattern={f"1.*{targets[0]}": 5}, fan_in_fan_out=transposed,
    )  # fmt: skip
    merged = merge_ops.merge([a, b], [0.5, 2.0])
    report = merge_ops.save(merged, tmp_path / "out", dtype=torch.float32)
    assert report.format == "peft"
    assert {layer.rank for layer in report.layers} == {4, 6, 9}
    assert_peft_adds_it(make(), tmp_path / "out", merged, adapter_deltas)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_full_rank_merge_in_half_precision(dtype, tmp_path, adapter_deltas):
    options = {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True}
    loras = [
        folder_of(gpt2(), tmp_path / "a", ["c_attn"], **options),
        folder_of(gpt2(), tmp_path / "b", ["c_attn"], **options, use_rslora=True),
    ]
    merged = merge_ops.merge(loras, method="ties", rank=6)
    merge_ops.save(merged, tmp_path / "out", dtype=dtype)
    assert_peft_adds_it(gpt2(), tmp_path / "out", merged, adapter_deltas, 8 * torch.finfo(dtype).eps)


def test_a_pattern_meets_only_its_own_layer(tmp_path, adapter_deltas):
    """``proj`` at a rank of its own does not give that rank to ``block.proj``."""
    ranks = {"^proj": 2}
    a = folder_of(twins(), tmp_path / "a", ["proj"], r=4, lora_alpha=4, rank_pattern=ranks)
    b = merge_ops.load(tmp_path / "a")
    b.layers.pop("proj")
    merged = merge_ops.merge([a, b])
    report = merge_ops.save(merged, tmp_path / "out", dtype=torch.float32)
    assert {layer.name: layer.rank for layer in report.layers} == {"proj": 2, "block.proj": 8}
    assert_peft_adds_it(twins(), tmp_path / "out", merged, adapter_deltas)


def test_a_unet_from_kohya_files(sd15_files, make_pipe, tmp_path, adapter_deltas):
    """Convolutions and linear layers at mixed ranks; a folder holds one model, so no text encoder."""
    loras = [merge_ops.load(file) for file in sd15_files]
    merged = merge_ops.merge(loras)
    with pytest.raises(MergeError, match=r"one model.*text_encoder, unet"):
        merge_ops.save(merged, tmp_path / "out", format="peft")
    for lora in loras:
        for name in [name for name in lora.layers if not name.startswith("unet.")]:
            lora.layers.pop(name)
    merged = merge_ops.merge(loras)
    merge_ops.save(merged, tmp_path / "out", format="peft", dtype=torch.float32)
    assert_peft_adds_it(make_pipe().unet, tmp_path / "out", merged, adapter_deltas)


def test_text_models_are_refused_by_formats_that_cannot_hold_them(tmp_path):
    merged = merge_ops.merge([folder_of(gpt2(), tmp_path / "a", ["c_attn"], r=2)])
    for form in ("kohya", "diffusers"):
        with pytest.raises(MergeError, match=r"transformer.h.0.attn.c_attn.*format='peft'"):
            merge_ops.save(merged, tmp_path / "out.safetensors", format=form)


def test_configuration_keeps_what_still_holds(tmp_path):
    a = folder_of(gpt2(), tmp_path / "a", ["c_attn"], r=2, task_type="CAUSAL_LM", use_rslora=True)
    merge_ops.save(merge_ops.merge([a]), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert config["fan_in_fan_out"] is True
    assert (config["use_rslora"], config["r"], config["lora_alpha"]) == (False, 2, 2)
