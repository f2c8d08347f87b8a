"""Tiny text models of stock transformers with random weights, and adapters of stock PEFT for them."""

import pytest
import torch

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft", minversion="0.21.2")

VOCAB = 96
LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
# kind -> class, configuration, target modules of each adapter (the second one lacks some)
KINDS = {
    "llama": (
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
        [[*ATTENTION, *MLP, "embed_tokens", "lm_head"], ATTENTION, [*MLP, "lm_head"]],
    ),
    "gpt2": (  # Conv1D, and an embedding that is the output head too
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=4)
        ),
        [["c_attn", "c_proj", "c_fc", "wte"], ["c_attn", "c_proj"], ["c_attn", "c_fc", "wte"]],
    ),
    "bert": (
        lambda: transformers.BertForSequenceClassification(
            transformers.BertConfig(
                vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                intermediate_size=48, max_position_embeddings=64, num_labels=3,
            )
        ),
        [["query", "key", "value", "dense", "word_embeddings"], ["query", "value"], ["query", "dense"]],
    ),
}  # fmt: skip
SCALING = [{"lora_alpha": 8}, {"lora_alpha": 3, "use_rslora": True}, {"lora_alpha": 5}]
TOKENS = torch.randint(0, VOCAB, (2, 11), generator=torch.Generator().manual_seed(3))


def make_model(kind, seed=0):
    """A model whose weights are large enough to tell merges apart by the logits."""
    torch.manual_seed(seed)
    model = KINDS[kind][0]().eval()
    with torch.no_grad():
        for weight in dict.fromkeys(model.parameters()):
            if weight.dim() > 1:
                weight.mul_(3.0)
    return model


def add_adapters(model, targets, rank=4, scaling=SCALING):
    """A ``PeftModel`` with adapters ``a``, ``b``, ``c`` whose factors are random on both sides."""
    wrapped = model
    for i, (name, modules) in enumerate(zip("abc", targets, strict=False)):
        config = peft.LoraConfig(r=rank, target_modules=modules, **scaling[i])
        if i == 0:
            wrapped = peft.get_peft_model(model, config, adapter_name=name)
        else:
            wrapped.add_adapter(name, config)
    torch.manual_seed(7)
    with torch.no_grad():
        for key, weight in wrapped.named_parameters():
            if "lora_" in key:
                weight.normal_(std=0.3)
    return wrapped.eval()


def save_adapters(kind, targets, folder, **more):
    """Write adapters for a model of that kind; the folder of each by its name."""
    add_adapters(make_model(kind), targets, **more).save_pretrained(folder)
    return {name: folder / name for name in "abc"[: len(targets)]}


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(tokens).logits
