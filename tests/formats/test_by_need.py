"""Ranks by need, against every layer's whole delta, and sizes against the files themselves."""

import itertools

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from merge_ops import MergeError, ParameterError, RankRule
from merge_ops.merging.rank_rule import parse_size
from merge_ops.saving import plan_sizes
from merge_ops.saving.layout import Layout
from merge_ops.saving.stems import module_names

BLOCK = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
SHAPES = {
    f"{BLOCK}.attn1.to_q": (64, 48),
    f"{BLOCK}.ff.net.2": (32, 96),
    "unet.down_blocks.0.resnets.0.conv1": ("conv", 16, 8 * 9, (3, 3)),
}
METHODS = ("linear", "ties", "even")


@pytest.fixture
def loras(make_lora):
    return [make_lora(f"lora{seed}", shapes=SHAPES, rank=8, alpha=5, seed=seed, decay=0.8) for seed in (1, 2)]


def values(merged):
    """Singular values of the whole deltas, in float64."""
    return {name: torch.linalg.svdvals(merged.delta(name).flatten(1).double()) for name in merged.layers}


def ranks(path):
    return {name: layer.rank for name, layer in merge_ops.load(path).layers.items()}


def fewest(terms, share):
    """The fewest of the terms, from the first on, that make up a share of their sum."""
    return next(r for r in range(1, len(terms) + 1) if float(terms[:r].sum()) >= share * float(terms.sum()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_energy_per_layer(loras, tmp_path, method, share):
    """Each layer has the smallest rank that keeps its share, and the file holds the best of that rank."""
    merged = merge_ops.merge(loras, method=method)
    path = tmp_path / "x.safetensors"
    rule = RankRule(energy=share, per_layer=True)
    saved = merge_ops.save(merged, path, rank=rule, dtype=torch.float32)
    assert ranks(path) == {name: fewest(s.square(), share) for name, s in values(merged).items()}
    assert all(line.energy_kept >= share - 1e-6 for line in saved.layers)
    for name, layer in merge_ops.load(path).layers.items():
        u, s, vh = torch.linalg.svd(merged.delta(name).flatten(1).double(), full_matrices=False)
        best = (u[:, : layer.rank] * s[: layer.rank]) @ vh[: layer.rank]
        assert torch.allclose(layer.delta().flatten(1).double(), best, atol=1e-5)


@pytest.mark.parametrize("param", [1.5, 3.0, 20.0])
def test_ratio_is_kohyas(loras, tmp_path, param):
    """sv_ratio counts what is above the largest singular value of the layer divided by the parameter."""
    merged = merge_ops.merge(loras)
    merge_ops.save(merged, tmp_path / "x.safetensors", rank=RankRule(ratio=param, per_layer=True, limit=9))
    expected = {name: min(9, max(1, int((s > s[0] / param).sum()))) for name, s in values(merged).items()}
    assert ranks(tmp_path / "x.safetensors") == expected
    merge_ops.save(merged, tmp_path / "whole.safetensors", rank=RankRule(ratio=param))
    top = max(float(s[0]) for s in values(merged).values())
    expected = {name: max(1, int((s > top / param).sum())) for name, s in values(merged).items()}
    assert ranks(tmp_path / "whole.safetensors") == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_sizes_are_those_of_the_files(loras, tmp_path, method, form, dtype):
    """Every line of the table to the byte; and a file for each size, as large as it may be."""
    merged = merge_ops.merge(loras, method=method)
    path = tmp_path / "x.safetensors"
    for share in (0.7, 0.97):
        rule = RankRule(energy=share)
        plan = plan_sizes(merged, rule, path, form, dtype)
        saved = merge_ops.save(merged, path, rule, form, dtype, overwrite=True)
        assert saved.size == path.stat().st_size == plan.chosen.size
        assert saved.kept.energy == pytest.approx(plan.chosen.energy, abs=1e-5) and saved.kept.energy >= share
    largest = max(rows + columns for rows, columns in ((64, 48), (32, 96), (16, 72)))
    for per_layer in (False, True):
        low, high = plan.lines[0].size, plan.lines[-1].size
        sizes = range(low, high, (high - low) // 7)
        energies = []
        for size in sizes:
            rule = RankRule(size=size, per_layer=per_layer)
            saved = merge_ops.save(merged, path, rule, form, dtype, overwrite=True)
            assert path.stat().st_size <= size
            if not per_layer and saved.kept.energy < 0.999:
                assert size - path.stat().st_size < largest * dtype.itemsize + 150  # of the header
            energies.append(saved.kept.energy)
        assert energies == sorted(energies) and len(energies) > 3


def test_no_choice_of_the_same_size_keeps_more(make_lora, tmp_path):
    """Against all choices of ranks."""
    lora = make_lora(shapes=SHAPES, rank=5, seed=3, decay=0.7)
    merged = merge_ops.merge([lora])
    path = tmp_path / "x.safetensors"
    stems = module_names(merged.layers, "kohya", [lora])
    layout = Layout(merged, "kohya", torch.float32, stems, "x")
    squares = {name: s.square() for name, s in values(merged).items()}
    cost = {name: sum(layer.template.matrix_shape) for name, layer in merged.layers.items()}
    for size in range(4000, 9000, 700):
        saved = merge_ops.save(merged, path, RankRule(size=size), dtype=torch.float32, overwrite=True)
        chosen = ranks(path)
        bytes_used = sum(cost[name] * rank for name, rank in chosen.items())
        kept = sum(float(squares[name][:rank].sum()) for name, rank in chosen.items())
        for other in itertools.product(range(1, 6), repeat=3):
            tried = dict(zip(squares, other, strict=True))
            if sum(cost[name] * rank for name, rank in tried.items()) <= bytes_used:
                assert sum(float(squares[name][:rank].sum()) for name, rank in tried.items()) <= kept + 1e-9
        rule = merge_ops.read_recipe(path).ranks
        assert layout.size(merged.spectra().ranks(rule), rule) == saved.size


def test_too_small(loras, tmp_path):
    """Refused with the least possible size, which is possible."""
    merged = merge_ops.merge(loras)
    path = tmp_path / "x.safetensors"
    with pytest.raises(ParameterError, match=r"too small.*\((\d+) bytes\)") as refused:
        merge_ops.save(merged, path, RankRule(size=100))
    assert not path.exists()
    least = int(str(refused.value).rpartition("(")[2].split()[0])
    merge_ops.save(merged, path, RankRule(size=least))
    assert path.stat().st_size == least and set(ranks(path).values()) == {1}
    with pytest.raises(ParameterError, match="too small"):
        merge_ops.save(merged, path, RankRule(size=least - 1), overwrite=True)


def test_whatever_fits_is_exact(loras, tmp_path):
    """A size above that of the whole file leaves the factors as they are."""
    merged = merge_ops.merge(loras[:1])
    merge_ops.save(merged, tmp_path / "whole.safetensors", dtype=torch.float32)
    merge_ops.save(merged, tmp_path / "x.safetensors", RankRule(size=10**9), dtype=torch.float32)
    one, other = (merge_ops.load(tmp_path / f"{name}.safetensors") for name in ("whole", "x"))
    assert all(torch.equal(one.layers[name].down, other.layers[name].down) for name in one.layers)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "rule",
    [
        RankRule(energy=0.9),
        RankRule(energy=0.8, per_layer=True, limit=6, conv_limit=2),
        RankRule(ratio=5),
        RankRule(cumulative=0.7, per_layer=True),
        RankRule(size=12_000),
        RankRule(limit=4, conv_limit=2),
    ],
    ids=str,
)
def test_the_recipe_makes_the_same_file(loras, tmp_path, method, rule):
    """Also by way of a merge that is cut and saved afterwards; the limits hold."""
    first, again = tmp_path / "x.safetensors", tmp_path / "more" / "x.safetensors"
    again.parent.mkdir()
    merge_ops.save(merge_ops.merge(loras, method=method), first, rule)
    recipe = merge_ops.read_recipe(first)
    assert recipe.ranks is not None and recipe.ranks.size is None
    merge_ops.save(recipe.run(loras), again)
    assert first.read_bytes() == again.read_bytes()
    if rule.conv_limit:
        found = ranks(first)
        assert found["unet.down_blocks.0.resnets.0.conv1"] <= 2 and max(found.values()) <= rule.limit


def test_every_kind(tmp_path, make_lora):
    """Kinds without factors are truncated as full matrices; biases are kept whole; a DoRA needs the base."""
    torch.manual_seed(0)
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_"
    tensors = {
        f"{stem}attn1_to_q.hada_w1_a": torch.randn(32, 4), f"{stem}attn1_to_q.hada_w1_b": torch.randn(4, 24),
        f"{stem}attn1_to_q.hada_w2_a": torch.randn(32, 4), f"{stem}attn1_to_q.hada_w2_b": torch.randn(4, 24),
        f"{stem}attn1_to_q.alpha": torch.tensor(4.0),
        f"{stem}attn1_to_k.lokr_w1": torch.randn(4, 4), f"{stem}attn1_to_k.lokr_w2": torch.randn(8, 6),
        f"{stem}attn1_to_v.diff": torch.randn(32, 24),
        f"{stem}ff_net_2.lora_up.weight": torch.randn(24, 4),
        f"{stem}ff_net_2.lora_down.weight": torch.randn(4, 96), f"{stem}ff_net_2.alpha": torch.tensor(2.0),
        f"{stem}ff_net_2.diff_b": torch.randn(24),
    }  # fmt: skip
    save_file(tensors, tmp_path / "mixed.safetensors")
    merged = merge_ops.merge([merge_ops.load(tmp_path / "mixed.safetensors")])
    path = tmp_path / "x.safetensors"
    saved = merge_ops.save(merged, path, RankRule(energy=0.9, per_layer=True))
    biases = [name for name, layer in merged.layers.items() if layer.template.layout == "vector"]
    assert len(biases) == 1
    squares = {
        name: torch.linalg.svdvals(merged.delta(name).double()).square()
        for name in merged.layers
        if name not in biases
    }
    found = merge_ops.load(path).layers
    assert {name: found[name].rank for name in squares} == {n: fewest(s, 0.9) for n, s in squares.items()}
    assert torch.allclose(found[biases[0]].delta(), merged.delta(biases[0]), atol=2e-3)
    assert saved.size == plan_sizes(merged, RankRule(energy=0.9, per_layer=True), path).chosen.size
    del tensors[f"{stem}ff_net_2.diff_b"]
    save_file({**tensors, f"{stem}ff_net_2.dora_scale": torch.ones(24, 1)}, tmp_path / "dora.safetensors")
    dora = merge_ops.load(tmp_path / "dora.safetensors")
    with pytest.raises(MergeError, match="base="):
        merge_ops.merge([dora])
    base = {f"{BLOCK}.ff.net.2": torch.randn(24, 96)}
    bound = merge_ops.merge([dora], base=base.get)
    merge_ops.save(bound, path, RankRule(size=8_000), overwrite=True)
    assert path.stat().st_size <= 8_000


def test_zeros_and_nan(make_lora, tmp_path):
    """A layer of zeros keeps rank 1; NaN is refused by name."""
    lora = make_lora(shapes=SHAPES, rank=3)
    for layer in lora.layers.values():
        layer.up.zero_()
    path = tmp_path / "x.safetensors"
    for rule in (RankRule(energy=0.5), RankRule(ratio=2, per_layer=True), RankRule(size=20_000)):
        merge_ops.save(merge_ops.merge([lora]), path, rule, overwrite=True)
        assert set(ranks(path).values()) == {1}
    lora.layers[f"{BLOCK}.ff.net.2"].up.fill_(torch.inf)
    with pytest.raises(MergeError, match=r"ff\.net\.2"):
        merge_ops.save(merge_ops.merge([lora]), path, RankRule(energy=0.5), overwrite=True)


@pytest.mark.parametrize(
    "given",
    [{}, {"energy": 0.5, "size": 5}, {"energy": 0}, {"energy": 1.01}, {"energy": True}, {"energy": "0.5"},
     {"energy": float("nan")}, {"ratio": 0.5}, {"ratio": float("inf")}, {"size": 0}, {"size": 5.0},
     {"limit": 0}, {"conv_limit": -1}, {"cumulative": 0.5}, {"energy": 0.5, "per_layer": 1},
     {"per_layer": True}],
    ids=str,
)  # fmt: skip
def test_refused_rules(given):
    with pytest.raises(ParameterError):
        RankRule(**given)
    with pytest.raises(ParameterError):
        merge_ops.Recipe.parse({"recipe": 1, "sources": [{"name": "a"}], "ranks": given})


def test_a_rule_where_a_rank_is_needed(loras):
    merged = merge_ops.merge(loras)
    with pytest.raises(ParameterError, match="save"):
        merge_ops.merge(loras, rank=RankRule(energy=0.5))
    with pytest.raises(ParameterError, match="save"):
        merged.truncated(RankRule(size=5000))
    assert merged.truncated(RankRule(energy=0.9)).energy_kept >= 0.9
    for unreadable in (5, "0.9", {"enrgy": 0.5}):
        with pytest.raises(ParameterError, match="ranks"):
            merge_ops.Recipe.parse({"recipe": 1, "sources": [{"name": "a"}], "ranks": unreadable})


@pytest.mark.parametrize(
    ("text", "size"),
    [("50MB", 50_000_000), ("50 mb", 50_000_000), ("1.5MiB", 1_572_864), ("900kB", 900_000), ("7 B", 7),
     ("2KiB", 2048), (".5GB", 500_000_000)],
)  # fmt: skip
def test_sizes_in_words(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["50", "MB", "", "-5MB", "5 TB", "5MB5", "1e3MB", "0MB", "9" * 40 + "GB"])
def test_no_sizes(text):
    with pytest.raises(ParameterError):
        parse_size(text)
