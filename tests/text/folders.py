"""Tiny models of stock transformers, adapters of stock PEFT for them, and what every folder must do."""

import pytest
import torch

import merge_ops
from merge_ops.models.diffusers import patched

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TOKENS = torch.arange(20).reshape(2, 10)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2, "num_key_value_heads": 2}


def built(kind, **options):
    """A tiny model with the same weights each time."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind[0]}Config")(**options)
    return getattr(transformers, kind[0] + kind[1])(config).eval()


MODELS = {
    "llama": lambda: built(("Llama", "ForCausalLM"), **SMALL, intermediate_size=32, num_key_value_heads=2),
    "tied llama": lambda: built(
        ("Llama", "ForCausalLM"), **SMALL, intermediate_size=32, num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "gpt2": lambda: built(
        ("GPT2", "LMHeadModel"), n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16,
        bos_token_id=0, eos_token_id=0,
    ),
    "bert": lambda: built(("Bert", "ForSequenceClassification"), **SMALL, intermediate_size=32),
    "mixtral": lambda: built(("Mixtral", "ForCausalLM"), **SMALL, **EXPERTS, intermediate_size=24),
    "gpt-oss": lambda: built(
        ("GptOss", "ForCausalLM"), **SMALL, **EXPERTS, intermediate_size=16, head_dim=8,
        layer_types=["full_attention"] * 2,
    ),
}  # fmt: skip


def lora(**options):
    return peft.LoraConfig(**({"r": 2, "lora_alpha": 6} | options))


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def assert_same(found, wanted, tolerance=2e-6):
    assert (found - wanted).norm() <= tolerance * wanted.norm()


@torch.no_grad()
def assert_applied_and_saved(merged, model, wanted, folder, tolerance=2e-6):
    """Our own application and the folder in stock PEFT both compute ``wanted``; the model is restored."""
    base = MODELS[model]()
    before = {key: value.clone() for key, value in base.state_dict().items()}
    plain = logits(base)
    with patched(base, merged) as patch:
        assert not patch.unmatched
        ours = logits(base)
    assert all(torch.equal(before[key], value) for key, value in base.state_dict().items())
    merge_ops.save(merged, folder, dtype=torch.float32)
    assert_same(ours, wanted, tolerance)
    assert_same(logits(peft.PeftModel.from_pretrained(MODELS[model](), folder).eval()), wanted, tolerance)
    assert (wanted - plain).norm() > 1e-3 * plain.norm()


def tokens(*indices):
    return lora(target_modules=["q_proj"], trainable_token_indices=list(indices))


SCALED = {
    "llama": (["q_proj", "down_proj"], ["down_proj"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
}


def scaled(made, model, name, seed, targets=None):
    modules, inputs = SCALED[model]
    chosen = targets or modules
    config = peft.IA3Config(target_modules=chosen, feedforward_modules=[m for m in inputs if m in chosen])
    return made(model, config, name, seed)
