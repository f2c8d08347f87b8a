"""Write the seeds of the fuzzer: small files in every spelling, and files that are almost valid.

Run: python fuzz/corpus.py
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from safetensors.torch import save

SEEDS = Path(__file__).with_name("corpus")
STEM = "lora_unet_mid_block_attentions_0_proj_in"
UP, DOWN = torch.ones(3, 2), torch.ones(2, 3)

ONE = torch.tensor(1.0)
CORE = torch.ones(2, 2, 1, 1)


def of(**tensors: torch.Tensor) -> bytes:
    """Return a file with one module in kohya's spelling."""
    return bytes(save({f"{STEM}.{end}": tensor.clone() for end, tensor in tensors.items()}))


FILES = {
    "kohya": save(
        {f"{STEM}.lora_up.weight": UP, f"{STEM}.lora_down.weight": DOWN, f"{STEM}.alpha": torch.tensor(1.0)},
        {"ss_v2": "False"},
    ),
    "tucker": save(
        {
            f"{STEM}.lora_up.weight": torch.ones(3, 2, 1, 1),
            f"{STEM}.lora_down.weight": torch.ones(2, 3, 1, 1),
            f"{STEM}.lora_mid.weight": torch.ones(2, 2, 3, 3).half(),
        }
    ),
    "diffusers": save(
        {"unet.conv_in.lora_B.weight": UP, "unet.conv_in.lora_A.weight": DOWN},
        {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": {"conv_in": 1}})},
    ),
    "pti": save({"unet:1:up": UP, "unet:1:down": DOWN}, {"unet": '["GEGLU"]'}),
    "others": save({f"{STEM}{end}": UP.clone() for end in (".hada_w1_a", ".lokr_w1", ".oft_blocks")}),
    "dora": save(
        {f"{STEM}.lora_up.weight": UP, f"{STEM}.lora_down.weight": DOWN, f"{STEM}.dora_scale": UP * 2}
    ),
    "loha": of(hada_w1_a=UP, hada_w1_b=DOWN, hada_w2_a=UP, hada_w2_b=DOWN, alpha=ONE),
    "loha_core": of(
        **{f"hada_w{i}_a": torch.ones(2, 3) for i in (1, 2)},
        **{f"hada_w{i}_b": DOWN for i in (1, 2)},
        **{f"hada_t{i}": CORE for i in (1, 2)},
    ),
    "lokr": of(lokr_w1=UP, lokr_w2_a=UP, lokr_w2_b=DOWN, alpha=ONE),
    "lokr_core": of(lokr_w1_a=UP, lokr_w1_b=DOWN, lokr_w2_a=torch.ones(2, 3), lokr_w2_b=DOWN, lokr_t2=CORE),
    "glora": of(
        **{"a1.weight": UP, "a2.weight": DOWN, "b1.weight": UP, "b2.weight": DOWN, "bm.weight": CORE},
        alpha=ONE,
    ),
    "oft": of(oft_blocks=torch.zeros(2, 2, 2), rescale=torch.ones(4, 1), alpha=ONE),
    "boft": of(oft_blocks=torch.zeros(1, 2, 2, 2)),
    "ia3": of(ia3_l=torch.zeros(4), on_input=torch.tensor(True)),
    "whole": of(diff=UP, diff_b=torch.ones(3)),
    "norm": of(w_norm=torch.ones(3), b_norm=torch.ones(3)),
    "set": of(set_weight=torch.ones(3)),
    "widened": of(
        **{
            "lora_up.weight": UP, "lora_down.weight": DOWN, "lora_up.bias": torch.ones(3),
            "reshape_weight": torch.tensor([3, 3]),
        }
    ),
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "html": b"<!DOCTYPE html><html></html>",
    "pickle": b"\x80\x02}q\x00.",
    "zip": b"PK\x03\x04",
    "gguf": b"GGUF\x03\0\0\0",
    "endless": struct.pack("<Q", 2**63) + b"{}",
    "terabytes": b"%s{}" % struct.pack("<Q", 2),
}  # fmt: skip
HEADERS = {
    "claims_terabytes": {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
    "negative": {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [-4, 0]}},
    "float4": {f"{STEM}.alpha": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}},
    "metadata": {"__metadata__": {"ss_tag_frequency": '{"a": {"b": 1}}', "x": "\u20ac"}},
}
CONFIGS = {
    "plain": {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]},
    "patterns": {"peft_type": "LORA", "alpha_pattern": {"a.q": 1, ".*v": 2}, "rank_pattern": {"^b": 3}},
    "rslora": {"use_rslora": True, "fan_in_fan_out": True, "lora_alpha": 1.5, "modules_to_save": ["head"]},
    "mapping": {"auto_mapping": {"base_model_class": "UNet2DConditionModel"}, "use_dora": False},
    "loha": {"peft_type": "LOHA", "alpha": 3, "r": 2, "rank_pattern": {"q": 1}},
    "lokr": {"peft_type": "LOKR", "alpha": 3, "decompose_both": True},
    "ia3": {"peft_type": "IA3", "feedforward_modules": ["v"], "target_modules": ".*q"},
    "ia3_pattern": {"peft_type": "IA3", "feedforward_modules": ".*v", "modules_to_save": ["head"]},
    "oft": {"peft_type": "OFT", "coft": True, "eps": 1e-4, "use_cayley_neumann": False, "block_share": True},
    "oft_terms": {"peft_type": "OFT", "num_cayley_neumann_terms": 3, "bias": "all"},
    "boft": {"peft_type": "BOFT", "bias": "boft_only"},
    "dora": {"use_dora": True, "modules_to_save": ["head"], "exclude_modules": ["v"]},
}


PAIR = {"lora_A.weight": [2, 4], "lora_B.weight": [4, 2]}
SHAPES: dict[str, dict[str, list[int]]] = {  # by kind: the shapes of the tensors of one module
    "lora": PAIR,
    "dora": {"lora_A.weight": [2, 2], "lora_B.weight": [2, 2], "lora_magnitude_vector": [2]},
    "embedding": {"lora_embedding_A": [2, 4], "lora_embedding_B": [4, 2]},
    "mid": {
        "lora_down.weight": [2, 2, 1, 1],
        "lora_up.weight": [2, 2, 1, 1],
        "lora_mid.weight": [2, 2, 3, 3],
    },
    "loha": {f"hada_w{i}_{half}": [2, 2] for i in (1, 2) for half in "ab"},
    "lokr": {"lokr_w1": [2, 2], "lokr_w2_a": [1, 1], "lokr_w2_b": [1, 1]},
    "glora": {f"{part}.weight": [2, 2] for part in ("a1", "a2", "b1", "b2")},
    "oft": {"oft_blocks": [1, 2, 2], "rescale": [2, 1]},
    "peft_oft": {"oft_R.weight": [1, 1]},
    "boft": {"boft_R": [1, 1, 2, 2], "boft_s": [2, 1]},
    "ia3": {"ia3_l": [2, 1]},
    "whole": {"diff": [2, 2], "diff_b": [2]},
    "tokens": {"token_adapter.trainable_tokens_delta": [2, 2], **PAIR},
    "experts": {"lora_A.weight": [4, 2], "lora_B.weight": [2, 4]},
}
TYPES = {"loha": "LOHA", "lokr": "LOKR", "peft_oft": "OFT", "boft": "BOFT", "ia3": "IA3"}
MORE: dict[str, dict[str, object]] = {  # what the configuration of a kind says besides
    "lora": {"alpha_pattern": {"q": 1, ".*v": 2}, "rank_pattern": {"^a": 3}, "target_modules": "a.(q|v)"},
    "dora": {"use_dora": True, "modules_to_save": ["head"], "bias": "all"},
    "tokens": {"trainable_token_indices": {"q": [0, 1]}},
    "experts": {"target_parameters": ["q.weight"], "r": 2},
    "ia3": {"feedforward_modules": [".*v"], "target_modules": ["q", "v"]},
}


def case_of(kind: str, stem: str, config: dict[str, object] | None) -> dict[str, object]:
    """Return a structured input: two modules of a kind, merged with a method that suits all of them."""
    tensors = {
        f"{stem}{module}.{end}": ["F32", shape, "mixed"]
        for module in "qv"
        for end, shape in SHAPES[kind].items()
    }
    if config is None:
        named = {"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"q": 1}}
        return {"tensors": tensors, "metadata": {"lora_adapter_metadata": named}, "save": {"format": "auto"},
                "merge": {"method": "dare_ties", "density": 0.5, "twice": True, "base": "eye"}}  # fmt: skip
    tensors["base_model.model.head.weight"] = ["F16", [2, 2], "ones"]
    return {"tensors": tensors, "config": config, "save": {"format": "peft"},
            "merge": {"method": "linear", "base": "eye", "report": True}}  # fmt: skip


def cases() -> dict[str, dict[str, object]]:
    """Return the structured inputs by name: every kind as a file, and as a PEFT folder."""
    found = {}
    for kind in SHAPES:
        config = {"peft_type": TYPES.get(kind, "LORA"), "r": 2, "lora_alpha": 4, **MORE.get(kind, {})}
        found[f"file_{kind}"] = case_of(kind, "unet.", None)
        found[f"folder_{kind}"] = case_of(kind, "base_model.model.a.", config)
    return found


def main() -> None:
    """Write all seeds; the first byte of a seed selects how it is read."""
    SEEDS.mkdir(exist_ok=True)
    for name, raw in FILES.items():
        (SEEDS / f"file_{name}").write_bytes(b"\0" + raw)
        if raw[8:9] == b"{":
            length = struct.unpack("<Q", raw[:8])[0]
            (SEEDS / f"header_{name}").write_bytes(b"\1" + raw[8 : 8 + length] + b"\0" + raw[8 + length :])
    for name, header in HEADERS.items():
        (SEEDS / f"header_{name}").write_bytes(b"\1" + json.dumps(header).encode() + b"\0x")
    for name, config in CONFIGS.items():
        (SEEDS / f"config_{name}").write_bytes(b"\2" + json.dumps(config).encode())
    for name, case in cases().items():
        (SEEDS / f"case_{name}").write_bytes(b"\3" + json.dumps(case).encode())


if __name__ == "__main__":
    main()
