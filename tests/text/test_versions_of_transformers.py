"""One model under the names of several versions of transformers: adapters from before and after meet."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import merge_ops
from merge_ops.cli import main
from merge_ops.formats import from_tensors
from merge_ops.merging.merge import merge
from tests.text.folders import MODELS, SMALL, assert_applied_and_saved, assert_same, built, logits, lora, peft

WORDS = {
    "mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
    "qwen": ("mlp", "gate_proj", "up_proj", "down_proj"),
}
MODELS["qwen"] = lambda: built(
    ("Qwen2Moe", "ForCausalLM"), **SMALL, num_experts=3, num_experts_per_tok=2, num_key_value_heads=2,
    intermediate_size=24, moe_intermediate_size=24, shared_expert_intermediate_size=24,
)  # fmt: skip


def tensors_of(stems, size=16, seed=0):
    """A small random LoRA on each stem: a name, or a name with its output and input width."""
    random, tensors = torch.Generator().manual_seed(seed), {}
    for stem in stems:
        name, rows, columns = stem if isinstance(stem, tuple) else (stem, size, size)
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, columns, generator=random)
        tensors[f"{name}.lora_B.weight"] = torch.randn(rows, 2, generator=random)
    return tensors


def folder_of(path, stems, modules, seed=0):
    """A PEFT folder as an old version of transformers and PEFT wrote it."""
    path.mkdir()
    tensors = tensors_of(
        [(f"base_model.model.{name}", rows, columns) for name, rows, columns in stems], seed=seed
    )
    save_file(tensors, path / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 6,
        "target_modules": modules,
    }
    (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


@torch.no_grad()
def with_experts(model, layers, words):
    """The model with the changes of single experts in its stacked parameters, gate above up."""
    block, *names = words
    for number, layer in enumerate(model.model.layers):
        experts = layer.mlp.experts
        for expert in range(3):
            stem = f"model.layers.{number}.{block}.experts.{expert}."
            gate, up, down = (layers[stem + name].matrix() for name in names)
            experts.gate_up_proj[expert] += torch.cat([gate, up])
            experts.down_proj[expert] += down
    return model


@pytest.mark.parametrize("model", WORDS)
def test_experts_before_and_after_they_were_stacked(model, made, tmp_path):
    """What stock PEFT makes of one after the other; the result has the names of today."""
    block, gate, up, down = WORDS[model]
    stems = [
        (f"model.layers.{layer}.{block}.experts.{expert}.{word}", *sizes)
        for layer in range(2) for expert in range(3)
        for word, sizes in ((gate, (24, 16)), (up, (24, 16)), (down, (16, 24)))
    ]  # fmt: skip
    old = folder_of(tmp_path / "old", stems, [gate, up, down])
    both = ["experts.gate_up_proj", "experts.down_proj"]
    new, _ = made(model, lora(target_modules=["q_proj"], target_parameters=both), "new")
    merged = merge([merge_ops.load(old), merge_ops.load(new)])
    base = with_experts(MODELS[model](), merge_ops.load(old).layers, WORDS[model])
    if model == "mixtral":  # of the other, PEFT misses keys of the shared expert
        stock = peft.PeftModel.from_pretrained(MODELS[model](), old).merge_and_unload()
        assert_same(logits(base), logits(stock), 1e-5)
    wanted = logits(peft.PeftModel.from_pretrained(base, new).merge_and_unload())
    assert_applied_and_saved(merged, model, wanted, tmp_path / "saved", 1e-5)
    assert "model.layers.0.mlp.experts.gate_up_proj[0]" in merged.layers
    assert not any("block_sparse_moe" in name or "experts.0." in name for name in merged.layers)


def test_one_half_of_an_expert(tmp_path):
    """A LoRA of gate alone is the upper rows of the stacked matrix; the router moved as well."""
    gate = "model.layers.0.block_sparse_moe.experts.0.w1"
    router = "model.layers.0.block_sparse_moe.gate"
    old = from_tensors("old", tensors_of([gate, router]))
    stacked = "model.layers.0.mlp.experts.gate_up_proj[0]"
    layer = merge_ops.lora.LowRank(torch.ones(32, 1), torch.ones(1, 16))
    merged = merge([old, merge_ops.Lora("new", {stacked: layer})])
    delta = merged.delta(stacked)
    assert torch.allclose(delta[:16], old.layers[gate].matrix() + 1, atol=1e-5)
    assert torch.equal(delta[16:], torch.ones(16, 16))
    assert "model.layers.0.mlp.gate" in merged.layers


VISION = [
    # before 4.52, since then, and the name that is kept
    ("model.layers.0.self_attn.q_proj", "model.language_model.layers.0.self_attn.q_proj"),
    ("language_model.model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"),
    ("visual.blocks.0.attn.qkv", "model.visual.blocks.0.attn.qkv"),
    ("vision_tower.encoder.layers.0.fc1", "model.vision_tower.encoder.layers.0.fc1"),
    ("vision_tower.vision_model.encoder.layers.0.fc1", "model.vision_tower.encoder.layers.0.fc1"),
    ("multi_modal_projector.linear_1", "model.multi_modal_projector.linear_1"),
    ("language_model.lm_head", "lm_head"),
    ("model.embed_tokens", "model.language_model.embed_tokens"),
    ("layers.3.mlp.down_proj", "model.layers.3.mlp.down_proj"),
    ("thinker.model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"),
    ("thinker.visual.blocks.0.attn.q", "model.visual.blocks.0.attn.q"),
    ("model.layers.0.self_attn.k_proj", "language_model.layers.0.self_attn.k_proj"),
    ("model.layers.0.block_sparse_moe.gate", "model.layers.0.mlp.gate"),
    ("model.text_model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"),
]


@pytest.mark.parametrize(("before", "since"), VISION)
@pytest.mark.parametrize("swapped", [False, True])
def test_vision_language_models_in_both_orders(before, since, swapped, tmp_path):
    """One layer, under the name of today, whichever LoRA comes first; from the command line too."""
    stems = [(before, since), (since, before)][swapped]
    folders = [
        folder_of(tmp_path / f"{i}", [(stem, 16, 16)], [stem.rpartition(".")[2]], seed=i)
        for i, stem in enumerate(stems)
    ]
    loras = [merge_ops.load(folder) for folder in folders]
    merged = merge(loras)
    assert list(merged.layers) == [since]
    wanted = sum(next(iter(each.layers.values())).matrix() for each in loras)
    assert torch.allclose(merged.delta(since), wanted, atol=1e-5)
    assert main(["merge", *map(str, folders), "--format", "peft", "-o", str(tmp_path / "out")]) == 0
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {key.partition(".lora_")[0] for key in written} == {f"base_model.model.{since}"}


def test_a_layer_that_only_the_old_one_has_is_renamed_with_the_others():
    """A file with both kinds of names would fit no version of the model."""
    old = from_tensors(
        "old", tensors_of(["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"])
    )
    new = from_tensors("new", tensors_of(["model.language_model.layers.0.self_attn.q_proj"]))
    names = merge([old, new]).layers
    assert list(names) == [f"model.language_model.layers.{i}.self_attn.q_proj" for i in range(2)]


def test_a_lora_alone_keeps_its_names():
    """Nothing says what model it is for."""
    old = from_tensors("old", tensors_of(["model.layers.0.self_attn.q_proj"]))
    assert list(merge([old]).layers) == list(merge([old, old]).layers) == list(old.layers)


def test_the_base_model_may_have_the_names_of_another_version(tmp_path):
    """A DoRA with old names finds the weights of a checkpoint with new ones, and the other way round."""
    for own, other in (VISION[0], VISION[0][::-1], VISION[2]):
        weight = torch.randn(16, 16)
        save_file({f"{other}.weight": weight}, tmp_path / "base.safetensors")
        tensors = tensors_of([own]) | {f"{own}.lora_magnitude_vector": torch.rand(16) + 1}
        dora = from_tensors("dora", tensors)
        merged = merge([dora], base=tmp_path / "base.safetensors")
        (adapter,) = dora.base_dependent.values()
        assert torch.allclose(merged.delta(own), adapter.change(weight, "peft"), atol=1e-5)


@pytest.mark.parametrize(
    "begin", ["module.base_model.model.", "base_model.model.module.", "_orig_mod.base_model.model."]
)
def test_a_folder_of_a_wrapped_model_is_saved_without_the_wrapper(begin, tmp_path):
    """As PEFT writes it for the model itself."""
    folder, name = tmp_path / "wrapped", "model.layers.0.mlp.up_proj"
    folder_of(folder, [], ["up_proj"])
    save_file(tensors_of([begin + name]), folder / "adapter_model.safetensors")
    merge_ops.save(merge([merge_ops.load(folder)]), tmp_path / "out")
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {key.partition(".lora_")[0] for key in written} == {f"base_model.model.{name}"}


def test_patterns_of_a_compiled_model_keep_their_scale(tmp_path):
    """The configuration has torch.compile's word in its names, as the file has."""
    stem = "base_model.model._orig_mod.model.layers.0.mlp.up_proj"
    folder = tmp_path / "compiled"
    folder.mkdir()
    save_file(tensors_of([stem]), folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["up_proj"],
        "rank_pattern": {"_orig_mod.model.layers.0.mlp.up_proj": 2},
        "alpha_pattern": {"_orig_mod.model.layers.0.mlp.up_proj": 6},
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (layer,) = merge_ops.load(folder).layers.values()
    assert layer.scale == 3
    merge_ops.save(merge([merge_ops.load(folder)]), tmp_path / "out")
    assert not any("_orig_mod" in key for key in load_file(tmp_path / "out" / "adapter_model.safetensors"))


def test_two_decoders_in_one_file_are_not_guessed_at():
    """Which of them another LoRA means is not known."""
    both = from_tensors(
        "both", tensors_of(["model.layers.0.mlp.up_proj", "language_model.layers.0.mlp.up_proj"])
    )
    one = from_tensors("one", tensors_of(["model.layers.0.mlp.up_proj"]))
    with pytest.raises(merge_ops.IncompatibleLoraError, match=r"both has layers under 'language_model\.'"):
        merge([both, one])


@torch.no_grad()
def test_an_old_adapter_on_a_model_of_today():
    """The live model has one name more in front, or torch.compile's word."""
    from merge_ops.models.diffusers import patched

    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.language_model = torch.nn.Module()
            self.language_model.layers = torch.nn.ModuleList([torch.nn.Module()])
            self.language_model.layers[0].up_proj = torch.nn.Linear(16, 16)

    model = torch.nn.Module()
    model.model = Inner()
    adapter = from_tensors("old", tensors_of(["model.layers.0.up_proj"]))
    before = model.model.language_model.layers[0].up_proj.weight.clone()
    with patched(model, merge([adapter])) as patch:
        assert not patch.unmatched
        after = model.model.language_model.layers[0].up_proj.weight
        assert torch.allclose(after - before, next(iter(adapter.layers.values())).matrix(), atol=1e-5)
