"""Recipes: JSON there and back, the merge again from its sources, what is refused."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import merge_ops
from merge_ops import COMBINATION_TYPES, METHODS, MergeError, ParameterError, Recipe
from merge_ops.recipes import Source, recipe_of
from merge_ops.recipes.checked import is_plain_name
from tests.laws import ENTRYWISE, WITHOUT_RECORDING

WRITTEN_BY_0_1_0 = """{"recipe": 1, "version": "0.1.0", "sources": [{"name": "a", "sha256": "%s", "weight":
0.7}, {"name": "b", "sha256": null, "weight": 0.3, "text_weight": 0.1}], "method": "ties", "space": "delta",
"rank": 3, "params": {"density": 0.4, "majority_sign_method": "total"}, "scale": 1.5, "seed": 8}"""

LEADING_OUT = (
    "", ".", "/etc/passwd", "../a", "a/../b", "a\\..\\b", r"C:\a", "\\\\host\\a", "a\0b", "x" * 600,
)  # fmt: skip

numbers = st.floats(-1e6, 1e6) | st.integers(-100, 100)
# nearly all of these are plain: what is filtered out costs the test its inputs
letters = st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\~:")
names = (
    st.text(letters | st.sampled_from(" /."), min_size=1, max_size=30)
    .map("a{}b".format)
    .filter(is_plain_name)
)
digests = st.none() | st.text("0123456789abcdef", min_size=64, max_size=64)
sources = st.lists(
    st.builds(Source, names, digests, numbers, st.none() | numbers), min_size=1, max_size=4
).map(tuple)
shared = {"scale": numbers, "seed": st.integers(-(2**70), 2**70), "rank": st.none() | st.integers(1, 4096)}
votes = st.sampled_from(("total", "frequency"))


def values_of(param):
    if param.choices:
        return st.sampled_from(param.choices)
    numbers = st.integers if param.type is int else st.floats
    return numbers(param.min, param.max)


@st.composite
def recipes(draw):
    """Any valid recipe."""
    own = {key: draw(strategy) for key, strategy in shared.items()}
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(METHODS)))
        params = {p.name: draw(values_of(p)) for p in METHODS[name].params}
        spaces = ("delta", "factors") if name in ENTRYWISE else ("delta",)
        own |= {"method": name, "params": params, "space": draw(st.sampled_from(spaces))}
    else:
        own["combination_type"] = draw(st.sampled_from(sorted(COMBINATION_TYPES)))
        own["params"] = {"density": draw(st.floats(0, 1)), "majority_sign_method": draw(votes)}
        own["svd_rank"] = draw(st.none() | st.integers(1, 64))
        own["svd_clamp"] = draw(st.none() | st.floats(0, 1))
    return Recipe(draw(sources), **own)


@given(recipes())
@settings(deadline=None)
def test_json_there_and_back(recipe):
    """As text and as plain values; JSON is strict, and what is written does not change any more."""
    text = recipe.to_json()
    assert Recipe.parse(text) == Recipe.parse(json.loads(text)) == recipe
    assert Recipe.parse(recipe.to_json(indent=2)).to_json() == text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    "recipe", "version", "sources", "method", "combination_type", "svd_rank", "svd_clamp", "params", "space",
    "rank", "scale", "seed", "ids", "weights", "merge_strategy", "density", "majority_sign_method",
    "merge_method", "models", "parameters", "base_model",
)  # fmt: skip


@given(recipes(), st.dictionaries(st.sampled_from(KEYS), json_values, min_size=1, max_size=3))
@settings(deadline=None)
def test_a_wrong_value_is_a_merge_error(recipe, wrong):
    """Whatever stands behind a key: a recipe, or one sentence."""
    try:
        found = Recipe.parse(recipe.to_dict() | wrong)
    except MergeError as error:
        assert 0 < len(str(error)) < 600 and "\n" not in str(error)
    else:
        assert Recipe.parse(found.to_json()) == found


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_text_is_a_recipe_or_a_merge_error(text):
    """JSON or YAML, or neither."""
    with pytest.raises(MergeError):
        Recipe.parse(text)


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
def test_a_saved_file_is_made_again_from_its_recipe(form, folder, pair, tmp_path, same):
    """The recipe of the merge is in the file; run on its sources it gives the merge bit for bit."""
    if form == "peft":
        pair = [merge_ops.load(folder / f"{name}_peft") for name in ("ink", "mia")]
    merged = merge_ops.merge(
        pair, [0.7, -0.3], "dare_ties", text_weights=[0.2, -0.3], density=0.6, rank=3, scale=1.5, seed=9
    )
    path = tmp_path / ("x" if form == "peft" else "x.safetensors")
    merge_ops.save(merged, path, format=form)
    recipe = merge_ops.read_recipe(path)
    assert recipe == Recipe.of(merged)
    assert recipe.to_dict() == recipe_of(merged)
    again = recipe.run(merge_ops.find_sources(recipe, [folder]))
    assert same(again, merged)
    assert Recipe.of(again) == recipe
    assert not again.report.warnings


@pytest.mark.parametrize(
    ("space", "name"),
    [*(("delta", name) for name in WITHOUT_RECORDING), *(("factors", name) for name in ENTRYWISE)],
)
def test_every_method_runs_again(name, space, folder, pair, same):
    """With other than default parameters."""
    params = {
        p.name: p.choices[-1] if p.choices else 3 if p.type is int else 0.3 for p in METHODS[name].params
    }
    merged = merge_ops.merge(pair, [1.0, 0.5], name, space=space, **params)
    recipe = Recipe.parse(Recipe.of(merged).to_json())
    assert same(recipe.run(merge_ops.find_sources(recipe, [folder])), merged)


@pytest.mark.parametrize("name", COMBINATION_TYPES)
def test_every_combination_type_runs_again(name, folder, pair, same):
    """With PEFT's keywords, which some types ignore."""
    merged = merge_ops.merge(pair, [1.0, 0.5], combination_type=name, svd_rank=3, svd_clamp=0.9, density=0.4)
    recipe = Recipe.parse(Recipe.of(merged).to_json())
    assert same(recipe.run(merge_ops.find_sources(recipe, [folder])), merged)


@pytest.mark.parametrize("how", [{"method": "ties"}, {"combination_type": "cat"}])
def test_the_rank_of_saving_is_in_the_recipe(how, pair, tmp_path):
    """Run again, it gives what is in the file."""
    merge_ops.save(merge_ops.merge(pair, **how), tmp_path / "x.safetensors", rank=2, dtype=torch.float32)
    recipe = merge_ops.read_recipe(tmp_path / "x.safetensors")
    assert recipe.rank == 2
    again, saved = recipe.run(pair), merge_ops.load(tmp_path / "x.safetensors")
    for name, layer in saved.layers.items():
        assert again.layer(name).fixed.rank == layer.rank == 2
        assert torch.allclose(again.delta(name), layer.delta(), atol=1e-5)


def test_recipes_of_older_files_are_read():
    """The layout of 0.1.0, letter for letter."""
    recipe = Recipe.parse(WRITTEN_BY_0_1_0 % ("ab" * 32))
    assert recipe.to_dict() == json.loads(WRITTEN_BY_0_1_0 % ("ab" * 32))
    assert (recipe.weights, recipe.text_weights) == ([0.7, 0.3], [0.7, 0.1])
    assert (recipe.method, recipe.rank, recipe.scale, recipe.seed) == ("ties", 3, 1.5, 8)


@pytest.mark.parametrize(
    "name", ["/home/somebody/ink", r"C:\loras\ink", "C:ink", "../ink", "~/ink", "a\n/ink"]
)
def test_a_recipe_holds_no_path(name, make_lora):
    """Whatever the LoRA is called."""
    recipe = Recipe.of(merge_ops.merge([make_lora(name)]))
    assert recipe.sources[0].name == "ink"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipe": 2}, "version 2"),
        ({"recipe": True}, "version True"),
        ({"recipe": "1"}, "version '1'"),
        ({"colour": 1}, "no key 'colour'"),
        ({"sead": 1}, "did you mean 'seed'"),
        ({"sources": []}, "at least one source"),
        ({"sources": {}}, "must be a list"),
        ({"sources": ["ink"]}, "must be an object"),
        ({"sources": [{"weight": 1}]}, "must be text, not nothing"),
        ({"sources": [{"name": "a", "path": "/x"}]}, "no key 'path'"),
        ({"sources": [{"name": "a", "weight": "1"}]}, "weight of a must be a number"),
        ({"sources": [{"name": "a", "weight": True}]}, "weight of a must be a number"),
        ({"sources": [{"name": "a", "weight": float("nan")}]}, "finite"),
        ({"sources": [{"name": "a", "weight": 10**400}]}, "finite"),
        ({"sources": [{"name": "a", "text_weight": []}]}, "not a list"),
        ({"sources": [{"name": "a", "sha256": "ab"}]}, "64 hexadecimal"),
        *(({"sources": [{"name": name}]}, "plain name") for name in LEADING_OUT),
        ({"method": "tise"}, "did you mean 'ties'"),
        ({"method": 3}, "must be text"),
        ({"params": {"densty": 0.5}}, "did you mean 'density'"),
        ({"params": {"density": 1.5}}, "outside [0, 1]"),
        ({"params": {"density": 10**400}}, "finite"),
        ({"params": []}, "must be an object"),
        ({"space": "knots"}, "unknown space"),
        ({"rank": 0}, "1 or more"),
        ({"rank": 2.5}, "whole number"),
        ({"scale": float("inf")}, "finite"),
        ({"seed": 10**200}, "too large"),
        ({"svd_rank": 3}, "combination_type"),
        ({"combination_type": "cat"}, "cannot have a method"),
        ({"combination_type": "caat", "method": None, "params": {}}, "did you mean 'cat'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(change, says):
    """In one sentence."""
    good = {"recipe": 1, "sources": [{"name": "a"}], "method": "ties", "params": {"density": 0.5}}
    assert Recipe.parse(good)
    with pytest.raises(MergeError) as caught:
        Recipe.parse(good | change)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "3", "[]", "{}", '{"a": 1}', "{" * 100_000, '{"a":' * 100_000, "x" * 2**21]
)
def test_text_that_is_no_recipe(text):
    """Empty, too deep, too long, something else."""
    with pytest.raises(ParameterError):
        Recipe.parse(text)


def test_a_recipe_needs_as_many_loras_as_sources(pair):
    """Neither more nor fewer."""
    with pytest.raises(ParameterError, match="2 sources, but 1"):
        Recipe.of(merge_ops.merge(pair)).run(pair[:1])
