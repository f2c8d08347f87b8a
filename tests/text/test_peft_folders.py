"""PEFT folders of text models: read, merged, applied and written, with stock PEFT as the judge of logits."""

import json

import pytest
import torch

import merge_ops
from merge_ops import IncompatibleLoraError, LoraFormatError, MergeError
from merge_ops.analysis.facts import describe
from merge_ops.analysis.study import study
from merge_ops.merging import merge
from merge_ops.models.diffusers import patched
from tests.text.folders import (
    EXPERTS,
    MODELS,
    SMALL,
    assert_applied_and_saved,
    assert_same,
    built,
    logits,
    lora,
    peft,
    scaled,
    tokens,
)

BOTH = ["experts.gate_up_proj", "experts.down_proj"]
# name -> (model, options of the LoRA)
CASES = {
    "tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [5, 3]}),
    "tokens, tied": ("tied llama", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}),
    "tokens by module": (
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3], "lm_head": [3, 4]}},
    ),
    "tokens, gpt2": (
        "gpt2",
        {"target_modules": ["c_attn"], "trainable_token_indices": [7], "fan_in_fan_out": True},
    ),
    "tokens and a head": (
        "bert",
        {
            "target_modules": ["query"], "trainable_token_indices": [7], "modules_to_save": ["classifier"],
            "task_type": "SEQ_CLS",
        },
    ),
    "embeddings saved whole": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "a LoRA of embeddings": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "experts": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": BOTH}),
    "experts at two ranks": (
        "mixtral",
        {
            "target_modules": ["q_proj"], "target_parameters": BOTH, "use_rslora": True,
            "rank_pattern": {"experts.down_proj": 5}, "alpha_pattern": {"experts.gate_up_proj": 3},
        },
    ),
    "one parameter": ("mixtral", {"target_modules": [], "target_parameters": ["experts.down_proj"]}),
    "a parameter by its bare name": (
        "mixtral",
        {"target_modules": ["v_proj"], "target_parameters": ["gate_up_proj"]},
    ),
    "a parameter of two dimensions": (
        "llama",
        {"target_modules": [], "target_parameters": ["q_proj.weight"]},
    ),
    "experts stored transposed": ("gpt-oss", {"target_modules": ["q_proj"], "target_parameters": BOTH}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_adapter_is_that_adapter(case, made, tmp_path):
    """Read, applied, and written again."""
    model, options = CASES[case]
    folder, own = made(model, lora(**options))
    read = merge_ops.load(folder)
    assert not read.unmerged
    assert_applied_and_saved(merge([read]), model, logits(own), tmp_path / "saved")


@pytest.mark.parametrize("model", ["mixtral", "gpt-oss"])
def test_experts_merge_as_parameters(model, made, tmp_path):
    """Two LoRAs of different parameters and ranks add up to what PEFT makes of one after the other."""
    first, _ = made(model, lora(target_modules=["q_proj"], target_parameters=BOTH), "first")
    second, _ = made(model, lora(r=3, target_modules=[], target_parameters=BOTH[1:]), "second", 1)
    merged = merge([merge_ops.load(first), merge_ops.load(second)])
    base = peft.PeftModel.from_pretrained(MODELS[model](), first).merge_and_unload()
    wanted = logits(peft.PeftModel.from_pretrained(base, second).merge_and_unload())
    assert_applied_and_saved(merged, model, wanted, tmp_path / "saved")
    assert next(iter(merged.layers)) == "model.layers.0.mlp.experts.down_proj[0]"
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert len(config["target_parameters"]) == 4
    ties = merge([merge_ops.load(first), merge_ops.load(second)], method="ties", density=0.5)
    merge_ops.save(ties, tmp_path / "ties", rank=16, dtype=torch.float32)
    base = MODELS[model]()
    with torch.no_grad(), patched(base, ties):
        wanted = logits(base)
    assert_same(logits(peft.PeftModel.from_pretrained(MODELS[model](), tmp_path / "ties")), wanted, 1e-5)


def test_a_model_with_other_experts_is_refused(made):
    """Nothing is added to the first few of them."""
    folder, _ = made("mixtral", lora(target_modules=[], target_parameters=["experts.down_proj"]))
    other = built(
        ("Mixtral", "ForCausalLM"), **SMALL, **EXPERTS | {"num_local_experts": 4}, intermediate_size=24
    )
    with pytest.raises(IncompatibleLoraError, match=r"down_proj has 4 experts in the model and 3"):
        patched(other, merge([merge_ops.load(folder)]))


def test_experts_need_a_peft_folder(made, tmp_path):
    folder, _ = made("mixtral", lora(target_modules=[], target_parameters=["experts.down_proj"]))
    with pytest.raises(MergeError, match="format='peft'"):
        merge_ops.save(merge([merge_ops.load(folder)]), tmp_path / "out.safetensors", format="kohya")


REFUSED = {
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
    "olora": ({"init_lora_weights": "olora"}, "changes the base model's weights"),
    "corda": ({"init_lora_weights": "corda"}, "changes the base model's weights"),
    "loftq": ({"init_lora_weights": "loftq"}, "changes the base model's weights"),
    "lora-ga": ({"init_lora_weights": "lora_ga"}, "changes the base model's weights"),
    "layer replication": ({"layer_replication": [[0, 2], [1, 2]]}, "repeats layers"),
    "alora": ({"alora_invocation_tokens": [1, 2]}, "after its invocation tokens"),
    "qalora": ({"use_qalora": True}, "QA-LoRA"),
    "arrow": ({"arrow_config": {"top_k": 2}}, "Arrow"),
    "kasa": ({"kasa_config": {"beta": 1}}, "KaSA"),
    "bd-lora": ({"use_bdlora": {"nblocks": 2}}, "block-diagonal"),
    "megatron": ({"megatron_config": {"a": 1}}, "Megatron"),
    **{
        kind: ({"peft_type": kind}, kind)
        for kind in ("VERA", "FOURIERFT", "VBLORA", "RANDLORA", "PROMPT_TUNING")
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_difference_to_the_base_is_refused(case, made):
    """By name and with the reason."""
    folder, _ = made("llama", lora(target_modules=["q_proj"]))
    path, (options, reason) = folder / "adapter_config.json", REFUSED[case]
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    with pytest.raises(LoraFormatError, match=reason):
        merge_ops.load(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"exclude_modules": ["k_proj"]},
        {"layers_to_transform": [1]},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"megatron_core": "megatron.core", "qalora_group_size": 16},
    ],
)
def test_what_only_matters_in_training_is_read(options, made, tmp_path):
    """What the file holds is what was adapted."""
    folder, own = made("llama", lora(target_modules=["q_proj"], **options))
    assert_applied_and_saved(merge([merge_ops.load(folder)]), "llama", logits(own), tmp_path / "saved")


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@torch.no_grad()
def test_a_dora_is_written_as_a_plain_lora(model, made, tmp_path):
    """At full rank the logits are the same; truncated, each weight is off by the reported error."""
    target = {"llama": "q_proj", "gpt2": "c_attn"}[model]
    options = {"use_dora": True, "target_modules": [target], "fan_in_fan_out": model == "gpt2"}
    folder, own = made(model, lora(**options))
    merged = merge([merge_ops.load(folder)], base=MODELS[model]())
    merge_ops.save(merged, tmp_path / "full", rank=16, format="peft", dtype=torch.float32)
    stock = peft.PeftModel.from_pretrained(MODELS[model](), tmp_path / "full").eval()
    assert_same(logits(stock), logits(own), 1e-5)
    report = merge_ops.save(merged, tmp_path / "cut", rank=4, format="peft", dtype=torch.float32)
    assert 0 < report.total_error < 1
    before = MODELS[model]()
    after = peft.PeftModel.from_pretrained(MODELS[model](), tmp_path / "cut").merge_and_unload()
    for line in report.layers:
        delta = after.get_submodule(line.name).weight - before.get_submodule(line.name).weight
        exact = merged.delta(line.name).reshape(delta.shape)
        assert float((delta - exact).norm() / exact.norm()) == pytest.approx(line.error, rel=1e-3)


def test_facts_name_what_is_no_layer(made):
    """Whole weights, rows of tokens, and kinds that need the base model."""
    whole = describe(merge_ops.load(made("llama", tokens(3, 5), "tokens")[0]))["whole"]
    assert whole["model.embed_tokens"].endswith("2 x 16, 2 tokens")
    dora = merge_ops.load(made("llama", lora(target_modules=["q_proj"], use_dora=True), "dora")[0])
    facts = describe(dora)
    assert (facts["kinds"], facts["layers"], facts["whole"]) == ({"DoRA": 2}, 2, {})
    advice = study([dora, merge_ops.load(scaled(made, "llama", "ia3", 1)[0])]).advice
    assert [sentence.partition(" changes ")[2] for sentence in advice] == [
        "depends on the base model, so it is not measured here"
    ] * 2
