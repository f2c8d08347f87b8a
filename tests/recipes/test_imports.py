"""Recipes of other programs: LoRAX's requests, and mergekit's configurations where both mean the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import merge_ops
from merge_ops import MergeError, ParameterError, Recipe

LORAX = {"ids": ["a", "b"], "weights": [0.5, 1], "merge_strategy": "ties", "density": 0.25}
MODELS = [{"model": "a", "parameters": {"weight": 0.5}}, {"model": "b", "parameters": {"weight": 0.5}}]
YAML = """
merge_method: ties
base_model: org/base
models:
  - model: org/base
  - model: org/base+style/ink
    parameters: {weight: 0.5}
  - model: mia
    parameters:
      weight: 0.5
parameters:
  density: 0.3
  normalize: true
dtype: bfloat16
"""


@pytest.mark.parametrize("strategy", ["linear", "ties", "dare_linear", "dare_ties", None])
def test_lorax_requests(strategy, make_lora):
    """Merged in factor space, as LoRAX does, with its names for everything."""
    request = LORAX | {"merge_strategy": strategy, "majority_sign_method": "frequency"}
    recipe = Recipe.parse(json.dumps(request))
    loras = [make_lora(name, rank=4, seed=seed) for seed, name in enumerate("ab")]
    params = {"linear": {}, "dare_linear": {"density": 0.25}}.get(
        strategy or "linear", {"density": 0.25, "majority_sign_method": "frequency"}
    )
    wanted = merge_ops.merge(loras, [0.5, 1.0], strategy or "linear", space="factors", **params)
    found = recipe.run(loras)
    assert all(torch.equal(found.delta(name), wanted.delta(name)) for name in wanted.layers)
    assert [source.name for source in recipe.sources] == ["a", "b"]
    assert "0.5 acts as 0.25" in recipe.warnings[0]
    assert len(recipe.warnings) == 1 + (strategy or "").startswith("dare")


def test_lorax_in_delta_space():
    """Our addition to the request."""
    recipe = Recipe.parse(LORAX | {"space": "delta", "weights": [1, 1]})
    assert (recipe.space, recipe.method, recipe.params["density"]) == ("delta", "ties", 0.25)
    assert recipe.warnings == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ids": []}, "one weight per id"),
        ({"weights": []}, "one weight per id"),
        ({"weights": [1]}, "one weight per id"),
        ({"weights": None}, "must be a list"),
        ({"weights": ["1", "2"]}, "must be a number"),
        ({"ids": ["a", 1]}, "must be text"),
        ({"ids": ["a", "../b"]}, "plain name"),
        ({"merge_strategy": "tise"}, "did you mean 'ties'"),
        ({"merge_strategy": "slerp"}, "not a choice"),
        ({"density": 1.5}, "outside [0, 1]"),
        ({"density": None}, "needs a density"),
        ({"majority_sign_method": "sum"}, "not a choice"),
        ({"space": "core"}, "unknown space"),
        ({"adapter_source": "hub"}, "no key 'adapter_source'"),
    ],
)
def test_what_lorax_refuses(change, says):
    """As its client checks it, and density where leaving it out would make everything zero."""
    with pytest.raises(ParameterError) as caught:
        Recipe.parse(LORAX | change)
    assert says in str(caught.value)


def mergekit(method, deltas, weights, density=1.0, normalize=None, lam=1.0):
    """The published formulas on stacked deltas ``(n, out, in)``: trim, weighted vote, weighted mean."""
    weights = torch.tensor(weights).view(-1, 1, 1)
    normalize = method in ("linear", "ties") if normalize is None else normalize
    if method == "ties":
        kept = torch.zeros_like(deltas)
        for row, delta in zip(kept, deltas, strict=True):
            places = delta.abs().flatten().topk(int(density * delta.numel())).indices
            row.view(-1)[places] = delta.flatten()[places]
        weighted = kept * weights
        elected = (weighted.sum(dim=0) >= 0) * 2 - 1
        agrees = weighted.sign() == elected
        mixed, divisor = (weighted * agrees).sum(dim=0), (weights * agrees).sum(dim=0)
        divisor[divisor == 0] = 1
    else:
        mixed, divisor = (deltas * weights).sum(dim=0), weights.sum(dim=0)
    return lam * (mixed / divisor if normalize else mixed)


@pytest.mark.parametrize(
    ("method", "weights", "parameters"),
    [
        ("linear", [0.7, 0.5, -0.1], {}),
        ("linear", [0.7, 0.5, 0.1], {"normalize": False}),
        ("task_arithmetic", [0.7, -0.5, 0.1], {"lambda": 1.3}),
        ("task_arithmetic", [0.7, 0.5, 0.1], {"normalize": True, "lambda": 0.5}),
        ("ties", [0.7, 0.7, 0.7], {"density": 0.5}),
        ("ties", [2.0, 2.0, 2.0], {"density": 0.25, "normalize": 1, "lambda": 0.5, "int8_mask": True}),
        ("ties", [0.4], {"density": 0.5}),
        ("ties", [-0.4], {"density": 0.5, "normalize": False}),
    ],
)
def test_mergekit_means_the_same(method, weights, parameters, make_lora):
    """The recipe's merge against mergekit's formulas, in float32."""
    shapes = {"block.fc": (24, 20)}
    loras = [make_lora(f"l{i}", shapes=shapes, rank=5, seed=i) for i in range(len(weights))]
    models = [{"model": f"l{i}", "parameters": {"weight": w}} for i, w in enumerate(weights)]
    recipe = Recipe.parse({"merge_method": method, "models": models, "parameters": parameters})
    deltas = torch.stack([lora.layers["block.fc"].delta() for lora in loras])
    own = {"density": parameters.get("density", 1.0), "lam": parameters.get("lambda", 1.0)}
    wanted = mergekit(method, deltas, weights, normalize=parameters.get("normalize"), **own)
    assert torch.allclose(recipe.run(loras).delta("block.fc"), wanted, atol=1e-5)
    assert recipe.warnings == ()


def test_yaml():
    """With a base model, which is named and not merged; LoRAs on it may be written with a plus."""
    recipe = Recipe.parse(YAML)
    assert [source.name for source in recipe.sources] == ["style/ink", "mia"]
    assert (recipe.method, recipe.params["density"], recipe.space) == ("ties", 0.3, "delta")
    assert recipe.weights == [1.0, 1.0]  # equal weights cancel in mergekit's mean
    assert ["base_model" in recipe.warnings[0], "dtype" in recipe.warnings[1]] == [True, True]
    assert Recipe.parse(recipe.to_json()) == recipe


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_says_that_masks_are_others(method):
    """It is the same on average only."""
    parameters = {"density": 0.5, "normalize": method == "dare_ties"}
    recipe = Recipe.parse({"merge_method": method, "models": MODELS, "parameters": parameters})
    assert recipe.method == method and recipe.params["density"] == 0.5
    assert "random masks" in recipe.warnings[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"merge_method": "slerp"}, "cannot be expressed"),
        ({"merge_method": "della"}, "cannot be expressed"),
        ({"merge_method": ["ties"]}, "must be text"),
        ({"slices": []}, "'slices' cannot be expressed"),
        ({"modules": {}}, "'modules' cannot be expressed"),
        ({"tokenizer_source": "union"}, "no key 'tokenizer_source'"),
        ({"models": []}, "no model"),
        ({"models": [{"model": "a"}]}, "has no weight"),
        ({"models": [{"model": "/abs/a", "parameters": {"weight": 1}}]}, "plain name"),
        ({"models": [{"model": "a", "parameters": {"weight": [0, 0.5, 1]}}]}, "gradient"),
        ({"models": [{"model": "a", "parameters": {"weight": [{"filter": "mlp", "value": 1}]}}]}, "gradient"),
        ({"models": [{"model": "a", "parameters": {"weight": 1, "gamma": 1}}]}, "no key 'gamma'"),
        ({"models": [{"model": {"model": "a"}, "parameters": {"weight": 1}}]}, "must be text"),
        ({"models": [MODELS[0], {"model": "b", "parameters": {"weight": 0.9}}]}, "weights as votes"),
        ({"models": [{"model": n, "parameters": {"weight": -1}} for n in "ab"]}, "weights as votes"),
        (
            {"models": [MODELS[0], {"model": "b", "parameters": {"weight": 0.5, "density": 0.1}}]},
            "different densities",
        ),
        ({"parameters": {"normalize": False}}, "normalize: false"),
        ({"parameters": {"normalize": "maybe"}}, "true or false"),
        ({"parameters": {"density": 2}}, "outside [0, 1]"),
        ({"parameters": {"epsilon": 2}}, "no key 'epsilon'"),
        ({"merge_method": "dare_ties"}, "normalize: false"),
        ({"merge_method": "dare_linear", "parameters": {"rescale": False}}, "rescale"),
        ({"merge_method": "linear", "parameters": {"lambda": 2}}, "no lambda"),
        ({"merge_method": "linear", "parameters": {"density": 0.5}}, "drops nothing"),
        (
            {"merge_method": "linear", "models": [MODELS[0], {"model": "b", "parameters": {"weight": -0.5}}]},
            "add up to zero",
        ),
    ],
)  # fmt: skip
def test_what_mergekit_can_and_a_recipe_cannot(change, says):
    """Refused with the reason."""
    good = {"merge_method": "ties", "models": MODELS}
    assert Recipe.parse(good)
    with pytest.raises(MergeError) as caught:
        Recipe.parse(good | change)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: [",
        "a: !!python/object/apply:os.getcwd []",
        "a: !!int ''",
        "a: !!timestamp x",
        "a: !!bool x",
        "a: 2001-99-99",
        "? [a]\n: b",
        "&a [*a]",
        "--- a\n--- b",
        "recipe: 1\nsources: &s [{name: &n [" + "*n," * 3 + "]}]",
    ],
)
def test_yaml_that_is_refused(text):
    """Bad syntax, tags that would run code, values that are not what their tags say, loops."""
    with pytest.raises(ParameterError) as caught:
        Recipe.parse(text)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_without_pyyaml():
    """JSON works, and YAML says what to install."""
    code = (
        "import sys; sys.modules['yaml'] = None\n"
        "import merge_ops\n"
        f"assert merge_ops.Recipe.parse({json.dumps(LORAX)!r}).method == 'ties'\n"
        "try:\n    merge_ops.Recipe.parse('merge_method: ties')\n"
        "except merge_ops.ParameterError as error:\n    print(error)\n"
    )
    root = Path(merge_ops.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=600, check=True
    )
    assert "pip install pyyaml" in done.stdout
