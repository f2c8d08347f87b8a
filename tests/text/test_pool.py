"""A pool of adapters: a merge for each request, the model's own weights before and after, from any thread."""

import pytest
import torch

import merge_ops
from merge_ops import IncompatibleLoraError, LoraFormatError, MergeError, ParameterError, Recipe
from merge_ops.models.transformers import AdapterPool, patched
from tests.text.models import ATTENTION, TOKENS, add_adapters, logits, make_model, save_adapters

LORAX = {"ids": ["a", "b"], "weights": [0.5, -1], "merge_strategy": "ties", "density": 0.25}
OURS = {"recipe": 1, "sources": [{"name": "a", "weight": 0.7}, {"name": "c"}], "method": "linear"}
REQUESTS = {
    "lorax": LORAX,
    "lorax-linear": {"ids": ["b"], "weights": [1.0]},
    "lorax-delta": LORAX | {"space": "delta"},
    "lorax-dare": LORAX | {"merge_strategy": "dare_ties", "majority_sign_method": "frequency"},
    "ours": OURS,
    "recipe": Recipe.parse(
        OURS | {"method": "dare_linear", "params": {"density": 0.5}, "seed": 3, "rank": 2}
    ),
    "peft": {"recipe": 1, "sources": [{"name": "a"}, {"name": "b"}], "combination_type": "ties_svd"},
}


def state(model):
    return {key: weight.clone() for key, weight in model.state_dict().items()}


def same(model, before):
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[key], before[key]) for key in before)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_request_gets_its_merge(pool, model, llama_adapters, request_):
    """The logits of the same recipe merged by hand, twice; then the very same parameters are back."""
    before, parameters = state(model), dict(model.named_parameters())
    recipe = request_ if isinstance(request_, Recipe) else Recipe.parse(request_)
    merged = recipe.run([merge_ops.load(llama_adapters[source.name]) for source in recipe.sources])
    other = make_model("llama")
    with patched(other, merged):
        wanted = logits(other)
    for _ in range(2):
        with pool.merged(request_) as understood:
            assert torch.allclose(logits(model), wanted, atol=1e-4)
        assert understood == recipe and understood.warnings == recipe.warnings
        assert same(model, before)
        assert all(dict(model.named_parameters())[key] is value for key, value in parameters.items())
    assert (wanted - logits(model)).abs().max() > 0.05
    assert pool.cached_merges == 1


def test_generating_within_a_request(pool, model):
    """``generate`` of transformers under inference mode, and gradients afterwards as before."""
    with torch.inference_mode(), pool.merged(LORAX):
        tokens = model.generate(TOKENS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert tokens.shape == (2, 15)
    with pool.merged(LORAX):  # what inference mode made can be used outside of it
        assert torch.isfinite(model(TOKENS).logits).all()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_exceptions_restore(pool, model):
    """Within the block, and by what refuses the request before it."""
    before = state(model)
    with pytest.raises(KeyboardInterrupt), pool.merged(LORAX):
        raise KeyboardInterrupt
    assert same(model, before)
    with pool.merged(OURS):  # nobody is left inside
        pass


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (LORAX | {"ids": ["a", "bb"]}, "did you mean 'b'"),
        (LORAX | {"weights": [1]}, "one weight per id"),
        (LORAX | {"density": 2}, "outside [0, 1]"),
        (LORAX | {"density": None}, "needs a density"),
        (LORAX | {"merge_strategy": "tise"}, "did you mean 'ties'"),
        (LORAX | {"majority_sign_method": "sum"}, "not a choice"),
        ({"recipe": 1, "sources": [{"name": "a", "sha256": "0" * 64}]}, "has the SHA-256"),
        ({"adapter_id": "a"}, "not a recipe"),
    ],
)
def test_wrong_requests_are_refused(pool, model, request_, says):
    """With what is wrong; the model is not touched."""
    before = state(model)
    with pytest.raises(ParameterError) as caught, pool.merged(request_):
        pytest.fail("the block ran")
    assert says in str(caught.value) and same(model, before)


def test_a_source_is_found_by_its_content(pool, model, llama_adapters):
    """A recipe that knows the SHA-256 does not need the name."""
    sha256 = merge_ops.load(llama_adapters["b"]).sha256
    with pool.merged({"ids": ["b"], "weights": [1.0]}):
        wanted = logits(model)
    with pool.merged({"recipe": 1, "sources": [{"name": "other", "sha256": sha256}]}):
        assert torch.allclose(logits(model), wanted, atol=1e-4)


def test_ranks_must_match_for_lorax_only(pool, model, tmp_path):
    """As in LoRAX; delta space takes any."""
    pool.add("wide", save_adapters("llama", [ATTENTION], tmp_path, rank=6)["a"])
    request_ = {"ids": ["a", "wide"], "weights": [1, 1], "merge_strategy": "linear"}
    with pytest.raises(IncompatibleLoraError, match="the ranks differ"), pool.merged(request_):
        pytest.fail("the block ran")
    with pool.merged(request_ | {"space": "delta"}):
        pass


def test_adding_and_removing(pool, model, llama_adapters, tmp_path, make_lora):
    """Names are taken once, wrong files are refused, and a removed adapter's merges are forgotten."""
    with pool.merged(LORAX), pytest.raises(ParameterError, match="already"):
        pool.add("a", llama_adapters["a"])
    with pool.merged(OURS):
        first = logits(model)
    assert pool.cached_merges == 2 and pool.names == ("a", "b", "c")
    pool.remove("b")
    assert pool.cached_merges == 1 and pool.names == ("a", "c")
    pool.remove("c")
    assert (pool.cached_merges, pool.cached_bytes) == (0, 0)
    with pytest.raises(ParameterError, match="'c'"), pool.merged(OURS):
        pytest.fail("the block ran")
    pool.add("c", llama_adapters["b"])  # another one by that name
    with pool.merged(OURS):
        assert not torch.allclose(logits(model), first, atol=1e-2)
    with pytest.raises(ParameterError, match="no adapter"):
        pool.remove("b")
    with pytest.raises(ParameterError, match="plain name"):
        pool.add("../b", llama_adapters["b"])
    with pytest.raises(LoraFormatError):
        pool.add("b", tmp_path / "nothing")
    foreign = merge_ops.merge([make_lora(shapes={"layers.0.mlp.up": (48, 32)})])
    merge_ops.save(foreign, tmp_path / "foreign", format="peft")
    with pytest.raises(IncompatibleLoraError, match=r"no module for the layer .*layers.*up"):
        pool.add("b", tmp_path / "foreign")


def test_an_adapter_of_the_inner_model(pool, model, tmp_path):
    """Trained without the head, its layers lack the prefix ``model.``, and meet those of the others."""
    add_adapters(make_model("llama").model, [ATTENTION]).save_pretrained(tmp_path)
    lora = pool.add("inner", tmp_path / "a")
    assert "model.layers.0.self_attn.q_proj" in lora.layers
    with pool.merged({"ids": ["a", "inner"], "weights": [1, -1], "density": 0.5, "merge_strategy": "ties"}):
        pass


@pytest.mark.parametrize(("held", "cached"), [(0, 0), (1, 1), (2, 2), (9, 3)])
def test_the_budget_of_the_cache(model, llama_adapters, held, cached):
    """As many merges as fit, the least recently used go first; what does not fit at all is not kept."""
    pool = AdapterPool(model)
    for name, path in llama_adapters.items():
        pool.add(name, path)
    requests = [{"ids": [name], "weights": [1.0]} for name in "abc"]
    with pool.merged(requests[0]):
        size = pool.cached_bytes
    touched = {key: w for key, w in model.named_parameters() if "proj" in key}
    assert size == sum(weight.nbytes for weight in touched.values())
    pool.remove("a")
    pool.add("a", llama_adapters["a"])
    pool.cache_bytes = held * size + size // 2
    for request_ in requests:
        with pool.merged(request_):
            assert pool.cached_bytes <= pool.cache_bytes
    assert pool.cached_merges == cached
    with pytest.raises(ParameterError, match="0 or more"):
        AdapterPool(model, cache_bytes=-1)


def test_a_model_that_was_trained_or_cast_is_merged_anew(pool, model):
    """Cached weights of the old model would be wrong, and nobody would know."""
    with pool.merged(LORAX):
        first = logits(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    with pool.merged(LORAX):
        assert not torch.allclose(logits(model), first, atol=1e-3)
    model.to(torch.bfloat16)
    with pool.merged(LORAX):
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(48, 32))
    with pytest.raises(MergeError, match="replaced the weight"), pool.merged(LORAX):
        pytest.fail("the block ran")
