"""A recipe in words."""

import merge_ops
from merge_ops.recipes.described import describe_how, describe_source

SOURCES = [
    {"name": "ink", "weight": 0.7, "text_weight": 0.4, "blocks": "down:0.5"},
    {"name": "mia", "weight": -0.5},
]


def recipe(**settings):
    """A recipe of two sources."""
    return merge_ops.Recipe.parse({"recipe": 1, "sources": SOURCES, **settings})


def test_sources_with_their_strengths():
    """Only what was set."""
    said = [describe_source(source) for source in recipe().sources]
    assert said == ["ink at 0.7, text encoder 0.4, blocks down:0.5", "mia at -0.5"]


def test_how_it_was_merged():
    """Method, parameters, rank, strength and seed; nothing that is at its default but the parameters."""
    assert describe_how(recipe(method="linear")) == "linear of 2 LoRAs"
    whole = recipe(method="ties", params={"density": 0.3}, rank=32, scale=0.9, seed=7)
    wanted = "ties of 2 LoRAs, density 0.3, majority_sign_method total, rank 32, strength 0.9, seed 7"
    assert describe_how(whole) == wanted
    peft = recipe(combination_type="ties_svd", svd_rank=8, params={"density": 0.5})
    assert describe_how(peft).startswith("PEFT's ties_svd of 2 LoRAs, density 0.5")
    assert "svd_rank 8" in describe_how(peft)
