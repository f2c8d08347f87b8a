"""Trained tokens and vocabularies that grew: united, or refused where they clash."""

import json

import pytest
import torch

import merge_ops
from merge_ops import IncompatibleLoraError, LoraFormatError
from merge_ops.merging import merge
from merge_ops.models.diffusers import patched
from tests.text.folders import (
    MODELS,
    assert_applied_and_saved,
    assert_same,
    logits,
    lora,
    peft,
    tokens,
)


def test_rows_of_different_tokens_are_united(made, tmp_path):
    """Each adapter's tokens get its rows, in our application and in stock PEFT."""
    loras = [
        merge_ops.load(made("llama", tokens(*rows), name, seed)[0])
        for name, rows, seed in (("one", (9, 3), 1), ("two", (5,), 2))
    ]
    merged, turned = merge(loras), merge(loras[::-1])
    rows = merged.whole_weights["model.embed_tokens"]
    assert rows.rows == (3, 5, 9)
    assert torch.equal(rows.value, turned.whole_weights["model.embed_tokens"].value)
    assert torch.equal(rows.value[1], loras[1].whole_weights["model.embed_tokens"].value[0])
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
    assert merge([one, again]).whole_weights["model.embed_tokens"].rows == (3, 5)
    said = r"one and two hold different.*both train the token at index 5.*keep='one'"
    for base in (None, MODELS["llama"]()):
        with pytest.raises(IncompatibleLoraError, match=said):
            merge([one, two], base=base)
    kept = merge([one, two], keep="two").whole_weights["model.embed_tokens"]
    assert kept.rows == (3, 5, 7)
    assert torch.equal(kept.value[1:], two.whole_weights["model.embed_tokens"].value)
    assert torch.equal(kept.value[0], one.whole_weights["model.embed_tokens"].value[0])


def test_a_token_that_the_model_lacks_is_refused(made):
    folder, _ = made("llama", tokens(42), vocabulary=44)
    merged = merge([merge_ops.load(folder)])
    with pytest.raises(IncompatibleLoraError, match=r"resize_token_embeddings"):
        patched(MODELS["llama"](), merged)


def test_different_rows_for_tied_embeddings_are_refused(made):
    """The head and the input of a tied model are one weight."""
    indices = {"embed_tokens": [3], "lm_head": [3, 4]}
    folder, _ = made("llama", lora(target_modules=["q_proj"], trainable_token_indices=indices))
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
    for weight in read.whole_weights.values():
        weight.value[same:] = torch.randn(size - same, 16, generator=generator)
    return read


def test_new_tokens_at_the_same_index_are_detected(made, tmp_path):
    """The refusal says from where on; a base model says where its own vocabulary ends."""
    one, two = resized(made, "one", 1), resized(made, "two", 2)
    assert set(one.whole_weights) == {"model.embed_tokens", "lm_head"}
    with pytest.raises(
        IncompatibleLoraError, match=r"both add tokens from index 40 on, and they differ.*keep="
    ):
        merge([one, two])
    trained = resized(made, "trained", 3, same=44)
    trained.whole_weights["model.embed_tokens"].value[43] += 1
    with pytest.raises(IncompatibleLoraError, match="both add tokens from index 40 on"):
        merge([resized(made, "equal", 3, same=44), trained], base=MODELS["llama"]())
    merged = merge([one, two], keep="two")
    assert torch.equal(merged.whole_weights["lm_head"].value, two.whole_weights["lm_head"].value)
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
    for name, weight in long.whole_weights.items():
        weight.value[:42] = short.whole_weights[name].value
    for loras in ([short, long], [long, short]):
        assert merge(loras).whole_weights["lm_head"].value.shape == (44, 16)
