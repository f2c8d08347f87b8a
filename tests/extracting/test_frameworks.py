"""What is extracted, loaded by stock PEFT and stock diffusers."""

import pytest
import torch

import merge_ops

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def shifted(model, only=""):
    """Change every matrix and vector of a model."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if only in name:
                weight += torch.randn(weight.shape, generator=generator) * 0.02


def llama():
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    )


@pytest.mark.parametrize(("make", "only"), [(llama, "_proj"), (gpt2, ".h.")], ids=["llama", "gpt2"])
@pytest.mark.parametrize("shards", [False, True])
def test_a_language_model_becomes_a_peft_folder(tmp_path, make, only, shards):
    """Linear layers, and GPT-2's, which are stored transposed: the base with PEFT is the tuned model."""
    torch.manual_seed(0)
    model = make().eval()
    size = {"max_shard_size": "40KB"} if shards else {}
    model.save_pretrained(tmp_path / "base", **size)
    shifted(model, only)
    with torch.no_grad():  # norms and biases, which PEFT holds no difference of, stay as they were
        plain = type(model).from_pretrained(tmp_path / "base")
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.copy_(dict(plain.named_parameters())[name])
    model.save_pretrained(tmp_path / "tuned", **size)
    extracted = merge_ops.extract(tmp_path / "tuned", tmp_path / "base", energy=1.0)
    report = merge_ops.save(extracted, tmp_path / "adapter", dtype=torch.float32)
    assert report.format == "peft"
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, atol=1e-4, rtol=1e-3)


def test_embeddings_and_heads_too_and_norms_are_left_out_by_name(tmp_path):
    torch.manual_seed(0)
    model = llama().eval()
    model.save_pretrained(tmp_path / "base")
    shifted(model)
    model.save_pretrained(tmp_path / "tuned")
    extracted = merge_ops.extract(tmp_path / "tuned", tmp_path / "base", energy=1.0)
    assert {"model.embed_tokens", "lm_head"} <= set(extracted.layers)
    assert {name for name in extracted.found.left_out if "norm" in name} == set(extracted.found.left_out)
    assert any("a PEFT folder holds no difference" in line for line in extracted.outline.warnings)
    merge_ops.save(extracted, tmp_path / "adapter", dtype=torch.float32)
    plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    merged = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").merge_and_unload()
    wanted = dict(model.named_parameters())
    for name, weight in merged.named_parameters():
        if weight.ndim == 2:
            torch.testing.assert_close(weight, wanted[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_a_pipeline_of_diffusers_reads_it(tmp_path, form):
    """A UNet tuned in all its attention: loaded by diffusers, it answers as the tuned one."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=2, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, attention_head_dim=4,
    ).eval()  # fmt: skip
    unet.save_pretrained(tmp_path / "base")
    shifted(unet, "to_q.weight")
    shifted(unet, "ff.net.2.weight")
    unet.save_pretrained(tmp_path / "tuned")
    extracted = merge_ops.extract(tmp_path / "tuned", tmp_path / "base", energy=1.0, vectors=False)
    merge_ops.save(extracted, tmp_path / "x.safetensors", format=form, dtype=torch.float32)
    plain = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "base").eval()
    state, alphas = diffusers.StableDiffusionPipeline.lora_state_dict(
        tmp_path / "x.safetensors", unet_config=plain.config
    )[:2]
    diffusers.StableDiffusionPipeline.load_lora_into_unet(state, alphas, plain)
    generator = torch.Generator().manual_seed(2)
    given = [torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 7, 32))]
    with torch.no_grad():
        got, wanted = (each(given[0], 5, given[1]).sample for each in (plain, unet))
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-3)
