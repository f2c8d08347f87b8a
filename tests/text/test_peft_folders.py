"""PEFT folders of text models: read, merged, applied and written, with stock PEFT as the judge of logits."""

import json

import pytest
import torch

import merge_ops
from merge_ops import IncompatibleLoraError, LoraFormatError, MergeError, merge
from merge_ops.analysis.facts import describe
from merge_ops.analysis.study import study
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


@pytest.fixture
def made(tmp_path):
    """``(folder, model with the adapter)``, the adapter's weights random."""

    def make(model, config, name="adapter", seed=0, vocabulary=None):
        base = MODELS[model]()
        if vocabulary:
            base.resize_token_embeddings(vocabulary, mean_resizing=False)
        own = peft.get_peft_model(base, config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in own.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        folder = tmp_path / name
        own.save_pretrained(folder, save_embedding_layers=True if vocabulary else "auto")
        return folder, own.eval()

    return make


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
    assert merged.layers[0] == "model.layers.0.mlp.experts.down_proj[0]"
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


def tokens(*indices):
    return lora(target_modules=["q_proj"], trainable_token_indices=list(indices))


def test_rows_of_different_tokens_are_united(made, tmp_path):
    """Each adapter's tokens get its rows, in our application and in stock PEFT."""
    loras = [
        merge_ops.load(made("llama", tokens(*rows), name, seed)[0])
        for name, rows, seed in (("one", (9, 3), 1), ("two", (5,), 2))
    ]
    merged, turned = merge(loras), merge(loras[::-1])
    rows = merged.replaced["model.embed_tokens"]
    assert rows.rows == (3, 5, 9)
    assert torch.equal(rows.value, turned.replaced["model.embed_tokens"].value)
    assert torch.equal(rows.value[1], loras[1].replaced["model.embed_tokens"].value[0])
    base = MODELS["llama"]()
    with torch.no_grad(), patched(base, merged):
        wanted = logits(base)
    assert_applied_and_saved(merged, "llama", wanted, tmp_path / "saved")


def test_one_token_with_two_values_is_refused(made):
    """Unless the values are equal or one adapter is named; with a base model it is the same."""
    one, two, again = (
        merge_ops.load(made("llama", tokens(*rows), name, seed)[0])
        for name, rows, seed in (("one", (3, 5), 1), ("two", (5, 7), 2), ("again", (3, 5), 1))
    )
    assert merge([one, again]).replaced["model.embed_tokens"].rows == (3, 5)
    said = r"one and two hold different.*both train the token at index 5.*keep='one'"
    for base in (None, MODELS["llama"]()):
        with pytest.raises(IncompatibleLoraError, match=said):
            merge([one, two], base=base)
    kept = merge([one, two], keep="two").replaced["model.embed_tokens"]
    assert kept.rows == (3, 5, 7)
    assert torch.equal(kept.value[1:], two.replaced["model.embed_tokens"].value)
    assert torch.equal(kept.value[0], one.replaced["model.embed_tokens"].value[0])


def test_a_token_that_the_model_lacks_is_refused(made):
    folder, _ = made("llama", tokens(42), vocabulary=44)
    merged = merge([merge_ops.load(folder)])
    with pytest.raises(IncompatibleLoraError, match=r"resize_token_embeddings"):
        patched(MODELS["llama"](), merged)


def test_different_rows_for_tied_embeddings_are_refused(made):
    """The head and the input of a tied model are one weight."""
    model, options = CASES["tokens by module"]
    folder, _ = made(model, lora(**options))
    with pytest.raises(IncompatibleLoraError, match="one weight in this model"):
        patched(MODELS["tied llama"](), merge([merge_ops.load(folder)]))


def test_tokens_without_a_lora_are_a_kind_of_their_own(made, tmp_path):
    """TrainableTokens of PEFT, in and out."""
    config = peft.TrainableTokensConfig(token_indices=[3, 5], target_modules=["embed_tokens"])
    folder, own = made("llama", config)
    assert_applied_and_saved(merge([merge_ops.load(folder)]), "llama", logits(own), tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["peft_type"] == "TRAINABLE_TOKENS"


def test_an_index_for_each_row(made):
    """The configuration has to name as many tokens as there are rows."""
    folder, _ = made("llama", tokens(3, 5))
    path = folder / "adapter_config.json"
    for indices in ([3], [3, 3], [3, -1], {"lm_head": [3, 5]}, None):
        config = json.loads(path.read_text()) | {"trainable_token_indices": indices}
        path.write_text(json.dumps(config))
        with pytest.raises(LoraFormatError, match="each row needs a token of its own"):
            merge_ops.load(folder)


def resized(made, name, seed, size=44, same=40):
    """An adapter of a model whose vocabulary grew from ``same`` tokens, with random new ones."""
    folder, _ = made("llama", lora(target_modules=["q_proj"]), name, seed, size)
    read = merge_ops.load(folder)
    generator = torch.Generator().manual_seed(seed)
    for weight in read.replaced.values():
        weight.value[same:] = torch.randn(size - same, 16, generator=generator)
    return read


def test_new_tokens_at_the_same_index_are_detected(made, tmp_path):
    """The refusal says from where on; a base model says where its own vocabulary ends."""
    one, two = resized(made, "one", 1), resized(made, "two", 2)
    assert set(one.replaced) == {"model.embed_tokens", "lm_head"}
    with pytest.raises(
        IncompatibleLoraError, match=r"both add tokens from index 40 on, and they differ.*keep="
    ):
        merge([one, two])
    trained = resized(made, "trained", 3, same=44)
    trained.replaced["model.embed_tokens"].value[43] += 1
    with pytest.raises(IncompatibleLoraError, match="both add tokens from index 40 on"):
        merge([resized(made, "equal", 3, same=44), trained], base=MODELS["llama"]())
    merged = merge([one, two], keep="two")
    assert torch.equal(merged.replaced["lm_head"].value, two.replaced["lm_head"].value)
    with pytest.raises(IncompatibleLoraError, match=r"40 tokens in the model, and the merge holds 44"):
        patched(MODELS["llama"](), merged)
    base, stock = MODELS["llama"](), MODELS["llama"]()
    for model in (base, stock):
        model.resize_token_embeddings(44, mean_resizing=False)
    merge_ops.save(merged, tmp_path / "saved", dtype=torch.float32)
    with torch.no_grad(), patched(base, merged):
        wanted = logits(base)
    assert_same(logits(peft.PeftModel.from_pretrained(stock, tmp_path / "saved").eval()), wanted)


def test_a_longer_vocabulary_that_begins_with_the_other(made):
    """Nothing is lost, so nothing is refused."""
    short, long = resized(made, "short", 1, 42, 42), resized(made, "long", 2, 44, 44)
    for name, weight in long.replaced.items():
        weight.value[:42] = short.replaced[name].value
    for loras in ([short, long], [long, short]):
        assert merge(loras).replaced["lm_head"].value.shape == (44, 16)


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


SCALED = {
    "llama": (["q_proj", "down_proj"], ["down_proj"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
}


def scaled(made, model, name, seed, targets=None):
    modules, inputs = SCALED[model]
    chosen = targets or modules
    config = peft.IA3Config(target_modules=chosen, feedforward_modules=[m for m in inputs if m in chosen])
    return made(model, config, name, seed)


@pytest.mark.parametrize("model", SCALED)
def test_scalings_are_merged_as_peft_does(model, made, tmp_path):
    """With and without the base model, where all have the layer and the weights sum to 1; saved as (IA)3."""
    one, own = scaled(made, model, "one", 1)
    two, _ = scaled(made, model, "two", 2)
    own.load_adapter(two, "two")
    own.add_weighted_adapter(["default", "two"], [0.3, 0.7], "both")
    own.set_adapter("both")
    loras, wanted = [merge_ops.load(one), merge_ops.load(two)], logits(own)
    assert_applied_and_saved(merge(loras, [0.3, 0.7]), model, wanted, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["peft_type"] == "IA3"
    base = MODELS[model]()
    with patched(base, merge(loras, [0.3, 0.7], base=MODELS[model]())):
        assert_same(logits(base), wanted)


def test_a_missing_scaling_is_the_identity(made):
    """The layer of one adapter alone is that adapter at its weight; PEFT multiplies by the weight alone."""
    one = merge_ops.load(scaled(made, "llama", "one", 1)[0])
    two = merge_ops.load(scaled(made, "llama", "two", 2, ["q_proj"])[0])
    merged, name = merge([one, two], [0.5, 0.5]), "model.layers.0.mlp.down_proj"
    assert torch.allclose(merged.scaled[name].added, 0.5 * one.based[name].added)
    with_base = merge([one, two], [0.5, 0.5], base=MODELS["llama"]())
    weight = MODELS["llama"]().get_submodule(name).weight
    assert torch.allclose(with_base.delta(name), weight * merged.scaled[name].added, atol=1e-7)
    negative = merge([two, one], [-0.5, -0.5])
    assert all(torch.equal(negative.scaled[n].added, -merged.scaled[n].added) for n in merged.scaled)


def test_scalings_do_not_mix_without_the_base_model(made, tmp_path):
    """Another method, a layer that a LoRA adapts too, and a folder for both are refused."""
    one = merge_ops.load(scaled(made, "llama", "one", 1)[0])
    plain = merge_ops.load(made("llama", lora(target_modules=["q_proj"]), "plain")[0])
    other = merge_ops.load(made("llama", lora(target_modules=["v_proj"]), "other")[0])
    with pytest.raises(IncompatibleLoraError, match="base="):
        merge([one], method="ties")
    with pytest.raises(IncompatibleLoraError, match=r"q_proj is scaled by one.*plain.*base="):
        merge([one, plain])
    with pytest.raises(MergeError, match="one PEFT folder cannot hold"):
        merge_ops.save(merge([one, other]), tmp_path / "out", format="peft")
    with pytest.raises(MergeError, match="format='peft'"):
        merge_ops.save(merge([one]), tmp_path / "out.safetensors", format="kohya")


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
