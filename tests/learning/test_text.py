"""Learning with stock transformers models: language models by their logits, others by hidden states."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from merge_ops import ParameterError, learning, load, merge
from merge_ops.learning.measured import squared_errors
from merge_ops.models.hosts import POSITIONS, TransformersHost
from merge_ops.models.recorded import record_texts
from tests.text.models import KINDS, VOCAB, make_model, save_adapters, transformers

WORDS = [f"w{number}" for number in range(VOCAB - 2)]


@pytest.fixture(scope="module")
def tokenizer():
    """Every word is a token."""
    words = {"[PAD]": 0, "[UNK]": 1} | {word: number + 2 for number, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


def sentences(seed, count=12):
    """Texts of 3 to 9 words, each task from words of its own half."""
    generator = torch.Generator().manual_seed(seed)
    half = len(WORDS) // 2
    lengths = torch.randint(3, 10, (count,), generator=generator)
    draws = [torch.randint(half, (int(n),), generator=generator) + half * (seed % 2) for n in lengths]
    return [" ".join(WORDS[int(i)] for i in numbers) for numbers in draws]


@pytest.fixture(scope="module", params=sorted(KINDS))
def kind(request):
    """Llama, GPT-2 (Conv1D, tied embedding), BERT."""
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    """The base model."""
    return make_model(kind)


@pytest.fixture(scope="module")
def loras(kind, tmp_path_factory):
    """Two adapters of stock PEFT."""
    folders = save_adapters(kind, KINDS[kind][1], tmp_path_factory.mktemp(kind))
    return [load(folders[name]) for name in "ab"]


@pytest.fixture(scope="module")
def recording(model, tokenizer, loras):
    """Texts of both tasks, and others to keep."""
    return record_texts(
        model,
        tokenizer,
        loras,
        [sentences(0), sentences(1)],
        keep=sentences(2, 6),
        weights=[0.5, 0.6],
        batch=5,
    )


def test_padding_does_not_count(model, tokenizer, kind):
    """A text has the same states alone and beside a longer one, and nothing where it is padded."""
    host = TransformersHost(model)
    short, long = (
        tokenizer([text], return_tensors="pt") for text in ("w1 w2 w3", "w4 w5 w6 w7 w8 w9 w10 w11")
    )
    both = tokenizer(["w1 w2 w3", "w4 w5 w6 w7 w8 w9 w10 w11"], padding=True, return_tensors="pt")
    given = {name: both[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        seen = host.output("model", model(**given), (), given)
        alone = [
            host.output("model", model(input_ids=one["input_ids"]), (), {"input_ids": one["input_ids"]})
            for one in (short, long)
        ]
    if kind == "bert":  # one row of logits for a text
        assert all(torch.allclose(seen[i], alone[i][0], atol=1e-4) for i in range(2))
        return
    assert torch.allclose(seen[0, :3], alone[0][0], atol=1e-4) and not seen[0, 3:].any()
    assert torch.allclose(seen[1], alone[1][0], atol=1e-4)


def test_positions_of_long_texts():
    """At most ``POSITIONS`` places of a text, in order, each once, spread over what is not padding."""
    from merge_ops.models.hosts import _places

    mask = torch.ones(3, 200, dtype=torch.bool)
    mask[1, 70:] = False
    mask[2, :190] = False  # padded on the left
    places, counts = _places(mask)
    assert places.shape == (3, POSITIONS) and counts.sum(1).tolist() == [POSITIONS, POSITIONS, 10]
    for row in range(3):
        chosen = places[row][counts[row]]
        assert bool(mask[row][chosen].all()) and bool((chosen.diff() > 0).all())
    assert (
        places[0].max() > 190 and places[1].max() >= 68 and places[2][:10].tolist() == list(range(190, 200))
    )


def test_replay(model, recording, loras):
    """The recorded answers are those of each adapter alone."""
    host = TransformersHost(model)
    for role, weight in enumerate((0.5, 0.6)):
        with host.applied(merge([loras[role]], [weight])), torch.no_grad():
            assert max(squared_errors(host, recording.part(role=role))) < 1e-5


def test_distil(model, recording, loras, kind):
    """More is kept of both than by the sum, and the model is as before."""
    host = TransformersHost(model)
    assert host.loss == ("mse" if kind == "bert" else "kl")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    plain = learning.retention(recording, host, merge(loras, [0.5, 0.6]))
    distilled = learning.distill(recording, host, loras, steps=40, batch=12)
    kept = learning.retention(recording, host, distilled)
    assert kept.mean > plain.mean + 0.02 and kept.keep < plain.keep
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert all(layer.is_low_rank for layer in distilled.layers.values())


def test_texts_are_checked(model, tokenizer, loras):
    """One entry for each adapter, and none empty."""
    with pytest.raises(ParameterError, match="2 LoRAs need 2 entries of texts"):
        record_texts(model, tokenizer, loras, [sentences(0)])
    with pytest.raises(ParameterError, match="b has no texts"):
        record_texts(model, tokenizer, loras, [sentences(0), []])
