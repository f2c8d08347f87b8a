"""Tiny language models as transformers makes them, adapters of them by stock PEFT, and what PEFT merges.

Each model is written as a text encoder of ComfyUI, and the weights that PEFT's own merges give beside it.
"""

import json

import peft
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

WEIGHTS = {"a": (0.7, 0.4), "b": (-0.5, 0.9)}  # strength and clip strength; that of the clip holds
HIDDEN = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2}
DECODER = HIDDEN | {"num_key_value_heads": 1, "vocab_size": 300}
T5 = {"d_model": 64, "d_ff": 96, "num_layers": 2, "num_heads": 2, "d_kv": 16, "vocab_size": 300}
CLIP = HIDDEN | {"vocab_size": 49408, "max_position_embeddings": 77, "projection_dim": 64}
HEAD_128, HEAD_256 = DECODER | {"head_dim": 128}, DECODER | {"head_dim": 256}
ALL_OF_A_DECODER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL_OF_T5 = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
# name -> class, its configuration, ComfyUI's name of the encoder, modules with adapters
MODELS = {
    "qwen3": ("Qwen3ForCausalLM", HEAD_128, "qwen3_06b", [*ALL_OF_A_DECODER, "embed_tokens"]),
    "qwen25": ("Qwen2ForCausalLM", HEAD_128, "qwen25_3b", ALL_OF_A_DECODER),
    "llama": ("LlamaForCausalLM", HEAD_128, "llama", ALL_OF_A_DECODER),
    "gemma2": ("Gemma2ForCausalLM", HEAD_256, "gemma2_2b", ALL_OF_A_DECODER),
    "t5": ("T5EncoderModel", T5 | {"feed_forward_proj": "gated-gelu"}, "t5xxl", ALL_OF_T5),
}  # fmt: skip
SPOKEN = "qwen3"  # its tokenizer is in every checkout of ComfyUI


def make(models):
    """Write text encoders, adapters and ``language``, what PEFT's merges give, under a models folder."""
    for name in ("text_encoders", "loras", "../language"):
        (models / name).mkdir(parents=True, exist_ok=True)
    for name, (kind, sizes, encoder, modules) in MODELS.items():
        make_one(models, name, kind, sizes, encoder, modules)
    spoken = MODELS[SPOKEN][1] | {"vocab_size": 151936}
    make_one(models, "spoken", "Qwen3ForCausalLM", spoken, "qwen3_06b", ALL_OF_A_DECODER)
    sizes = {"clip_l_model_config": CLIP}
    config = transformers.CLIPTextConfig(**CLIP)
    save_encoder(models, "clip_l", transformers.CLIPTextModel(config), "", sizes)


def make_one(models, name, kind, sizes, encoder, modules):
    """A model, two adapters of it, and its weights with both."""
    torch.manual_seed(sum(map(ord, name)))
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**sizes, tie_word_embeddings=True)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 1.0)
    known = {key: size for key, size in sizes.items() if key not in ("head_dim", "feed_forward_proj")}
    kind_in_comfyui = {"spoken": SPOKEN}.get(name, name)
    save_encoder(models, name, model, kind_in_comfyui, {f"{encoder}_model_config": known})
    base = {key: tensor.clone().double() for key, tensor in model.state_dict().items()}
    both = dict(base)
    for which, (_, weight) in WEIGHTS.items():
        folder = models / "loras" / f"{name}_{which}"
        adapter = add_adapter(model, folder, modules, which)
        merged = adapter.merge_and_unload().state_dict()
        for key in base:
            both[key] = both[key] + weight * (merged[key].double() - base[key])
        model.load_state_dict({key: tensor.float() for key, tensor in base.items()})
    changed = {key: both[key].float() for key in base if not torch.equal(both[key], base[key])}
    save_file(changed, models.parent / "language" / f"{name}.safetensors")


def add_adapter(model, folder, modules, which):
    """Random weights in an adapter that PEFT saves: one of them rsLoRA, with fewer modules."""
    config = peft.LoraConfig(
        r=4 if which == "a" else 2,
        lora_alpha=8,
        use_rslora=which == "b",
        target_modules=modules if which == "a" else modules[:3],
    )
    adapter = peft.get_peft_model(model, config)
    for key, parameter in adapter.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    adapter.save_pretrained(folder, save_embedding_layers=False)
    return adapter


def save_encoder(models, name, model, kind, sizes):
    """The file of a text encoder, with what the test's loader is to know."""
    state = {key: tensor.half().float().contiguous() for key, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    tied = [key for key in state if key in ("lm_head.weight", "encoder.embed_tokens.weight")]
    if not kind and not any(key.startswith("text_model.") for key in state):
        state = {f"text_model.{key}": tensor for key, tensor in state.items()}
    metadata = {"sizes": json.dumps(sizes)} | ({"class": kind} if kind else {})
    kept = {key: tensor.clone() for key, tensor in state.items() if key not in tied}
    save_file(kept, models / "text_encoders" / f"{name}.safetensors", metadata)


def fused(models, name):
    """The same text encoder with PEFT's merges in its weights."""
    path = models / "text_encoders" / f"{name}.safetensors"
    changed = load_file(models.parent / "language" / f"{name}.safetensors")
    return load_file(path) | {key: tensor for key, tensor in changed.items() if key != "lm_head.weight"}


def metadata_of(models, name):
    """What the file of a text encoder says about it."""
    with safe_open(models / "text_encoders" / f"{name}.safetensors", "pt") as file:
        return file.metadata()
