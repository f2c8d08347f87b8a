"""What is extracted: a known LoRA comes back, any other difference as well as its rank allows."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import merge_ops
from merge_ops import ParameterError
from merge_ops.merging.matrix_svd import best_svd
from merge_ops.saving.kept import kept_by_extraction, percent
from tests.extracting.weights import SD1, UNET, assert_equal_deltas, differences, random_weights, tuned_from

TO_Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def test_a_known_lora_comes_back(sd1, tmp_path):
    """Linear layers, convolutions, embeddings, biases and norms, through the file and back."""
    extracted = merge_ops.extract(*sd1, rank=8)
    report = merge_ops.save(extracted, tmp_path / "lora.safetensors", dtype=torch.float32)
    assert report.format == "kohya" and report.kept.energy > 0.999999
    assert report.kept.sentence() == "keeps all of the difference, up to rounding"
    lora = merge_ops.load(tmp_path / "lora.safetensors")
    assert not lora.unmerged and not lora.warnings and len(lora.layers) == len(SD1)
    assert_equal_deltas(lora, differences(*sd1))
    # no layer has more than the four directions that there are
    assert {layer.rank for layer in extracted.found.layers} == {0, 4}
    assert extracted.found.held == extracted.energy_kept == pytest.approx(1)


def test_merging_it_with_the_base_gives_the_tuned_model(sd1):
    extracted = merge_ops.extract(*sd1, rank=4)
    tuned, base = (load_file(path)[f"{UNET}.attn1.to_q.weight"] for path in sd1)
    torch.testing.assert_close(base + extracted.delta(TO_Q), tuned, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(300, 700), (700, 300), (96, 40, 3, 3), (40, 40)])
@pytest.mark.parametrize("rank", [1, 8, 32])
def test_a_rank_holds_as_much_as_the_best_of_that_rank(write, shape, rank):
    """A flat spectrum, of which no few directions hold much."""
    name = f"{UNET}.attn1.to_q.weight"
    base = random_weights({name: shape})
    change = random_weights({name: shape}, seed=2)[name]
    paths = write("tuned.safetensors", {name: base[name] + change}), write("base.safetensors", base)
    squares = np.linalg.svd(differences(*paths)[name].flatten(1).double().numpy(), compute_uv=False) ** 2
    extracted = merge_ops.extract(*paths, rank=rank)
    assert extracted.found.held == pytest.approx(squares[:rank].sum() / squares.sum(), abs=1e-5)
    delta = extracted.delta(*extracted.layers).flatten(1).double()
    rest = (differences(*paths)[name].flatten(1).double() - delta).square().sum()
    assert float(rest) == pytest.approx(squares[rank:].sum(), rel=1e-4)


@pytest.mark.parametrize("energy", [0.3, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("decay", [1.0, 0.97, 0.7])
def test_energy_chooses_the_smallest_rank_of_each_layer(write, energy, decay):
    """Where next to nothing is lost with 64 directions, and where all are needed."""
    name, sides = f"{UNET}.attn1.to_q.weight", (600, 640)
    generator = torch.Generator().manual_seed(3)
    u, v = (torch.linalg.qr(torch.randn(side, 600, generator=generator))[0] for side in sides)
    change = (u * decay ** torch.arange(600.0)) @ v.T
    zero = torch.zeros(sides)
    paths = write("tuned.safetensors", {name: change}), write("base.safetensors", {name: zero})
    extracted = merge_ops.extract(*paths, energy=energy)
    squares = np.linalg.svd(change.double().numpy(), compute_uv=False) ** 2
    shares = squares.cumsum() / squares.sum()
    (layer,) = extracted.found.layers
    assert layer.held >= energy - 1e-6
    if energy < 1:
        assert layer.rank == int((shares >= energy).argmax()) + 1
    at_most = merge_ops.extract(*paths, energy=energy, rank=3)
    assert at_most.found.layers[0].rank <= 3


def test_best_svd_is_a_decomposition():
    """Its directions are orthonormal and its values those of the matrix, tall and wide."""
    for shape in ((500, 200), (200, 500)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        svd = best_svd(matrix, 40)
        for directions in (svd.u.T @ svd.u, svd.vh @ svd.vh.T):
            torch.testing.assert_close(directions, torch.eye(40), atol=2e-5, rtol=0)
        torch.testing.assert_close(svd.s, torch.linalg.svdvals(matrix)[:40], rtol=1e-5, atol=0)


def test_convolutions_may_have_a_rank_of_their_own(sd1):
    extracted = merge_ops.extract(*sd1, rank=4, conv_rank=2)
    ranks = {layer.name: layer.rank for layer in extracted.found.layers}
    assert ranks["unet.down_blocks.0.resnets.0.conv1"] == 2
    assert ranks["unet.down_blocks.0.attentions.0.proj_in"] == 4  # its kernel is 1 x 1


def test_clamp_clips_both_factors_as_kohya_does(sd1):
    extracted = merge_ops.extract(*sd1, rank=4, clamp=0.9)
    plain = merge_ops.extract(*sd1, rank=4)
    change = differences(*sd1)[f"{UNET}.attn1.to_q.weight"]
    layer = extracted.loras[0].layers[TO_Q]
    exact = torch.linalg.svd(change).Vh[:4].abs()
    limit = float(layer.down.abs().max())  # the singular values are small here, so ``up`` is not clipped
    torch.testing.assert_close(layer.down.abs(), exact.clamp(max=limit), atol=1e-5, rtol=0)
    above = int((layer.down >= limit).sum())  # a tenth of all entries are above the quantile
    assert above == pytest.approx(0.1 * (layer.up.numel() + layer.down.numel()), rel=0.02)
    # what clipping loses is in the report
    (held,) = (layer.held for layer in extracted.found.layers if layer.name == TO_Q)
    rest = (change - extracted.delta(TO_Q)).square().sum() / change.square().sum()
    assert held == pytest.approx(1 - float(rest), abs=1e-5) and held < 0.999
    assert plain.found.held > extracted.found.held


def test_equal_and_small_differences_are_left_out_by_name(write):
    base = random_weights(SD1)
    tuned = tuned_from(base, only="attn1")
    small = f"{UNET}.attn2.to_k.weight"
    tuned[small] = base[small] + 1e-5
    paths = write("tuned.safetensors", tuned), write("base.safetensors", base)
    extracted = merge_ops.extract(*paths, min_diff=1e-4)
    assert list(extracted.layers) == [TO_Q]
    assert len(extracted.found.same) == len(SD1) - 2
    (ignored,) = extracted.found.ignored
    assert ignored.endswith("attn2.to_k")
    lines = "\n".join(extracted.found.lines())
    assert "7 weights are the same in both models" in lines and "differs by more than 0.0001" in lines
    statuses = {line.name: (line.status, line.reason) for line in extracted.report.layers}
    assert statuses[ignored][0] == "skipped"
    assert sum(reason == "the same in both models" for _, reason in statuses.values()) == 7
    assert len(merge_ops.extract(*paths).layers) == 2


def test_without_vectors_there_are_matrices_only_and_what_that_loses_is_said(sd1, tmp_path):
    extracted = merge_ops.extract(*sd1, rank=4, vectors=False)
    assert all(layer.rank for layer in extracted.found.layers) and extracted.found.lost > 0
    (warning,) = extracted.outline.warnings
    assert "left out" in warning and "% of the difference): biases and weights of norms" in warning
    report = merge_ops.save(extracted, tmp_path / "x.safetensors", format="kohya")
    assert report.kept.energy == pytest.approx(1 - extracted.found.lost, abs=1e-6)


def test_little_is_said_with_the_rank_that_would_hold_more(write):
    """Of a flat difference a rank holds little, and what four times as much holds is close to the truth."""
    name = f"{UNET}.attn1.to_q.weight"
    shapes = {name: (256, 300), f"{UNET}.attn1.to_v.weight": (256, 300)}
    base, change = random_weights(shapes), random_weights(shapes, seed=5)
    tuned = {key: base[key] + change[key] for key in base}
    paths = write("tuned.safetensors", tuned), write("base.safetensors", base)
    kept = kept_by_extraction(merge_ops.extract(*paths, rank=16))
    assert kept.is_low and kept.wider is not None and kept.wider[0] == 64
    truth = merge_ops.extract(*paths, rank=64).found.held
    assert kept.wider[1] == pytest.approx(truth, abs=0.01)
    assert kept.sentence() == (
        f"rank 16 keeps {percent(kept.energy)} of the difference; rank 64 would keep about "
        f"{percent(kept.wider[1])}"
    )
    many = merge_ops.extract(*paths, energy=0.99)
    assert any("need as many numbers as the weights themselves" in line for line in many.outline.warnings)


def test_a_file_at_a_lower_rank_says_what_it_keeps_of_the_difference(write, tmp_path):
    name = f"{UNET}.attn1.to_q.weight"
    base, change = random_weights({name: (200, 200)}), random_weights({name: (200, 200)}, seed=5)
    paths = write("t.safetensors", {name: base[name] + change[name]}), write("b.safetensors", base)
    extracted = merge_ops.extract(*paths, rank=32)
    report = merge_ops.save(extracted, tmp_path / "x.safetensors", 8)
    assert report.kept.energy == pytest.approx(merge_ops.extract(*paths, rank=8).found.held, abs=1e-3)
    assert report.kept.rank == 8 and report.kept.sentence().startswith("rank 8 keeps ")


def test_the_recipe_names_both_models_by_content(sd1, tmp_path):
    merge_ops.save(merge_ops.extract(*sd1, rank=4), tmp_path / "x.safetensors")
    recipe = merge_ops.read_recipe(tmp_path / "x.safetensors")
    assert [source.name for source in recipe.sources] == ["tuned"] and recipe.sources[0].sha256
    assert recipe.extracted["base"]["name"] == "base" and len(recipe.extracted["base"]["sha256"]) == 64
    assert recipe.extracted["settings"] == {"rank": 4, "min_diff": 0.0, "vectors": True}
    assert merge_ops.Recipe.parse(recipe.to_json()) == recipe
    with pytest.raises(ParameterError, match="extracted from two models"):
        recipe.run([merge_ops.load(tmp_path / "x.safetensors")])
    assert str(tmp_path) not in (tmp_path / "x.safetensors").read_bytes().decode("latin-1")


def test_it_is_merged_like_any_lora(sd1, tmp_path):
    merge_ops.save(merge_ops.extract(*sd1, rank=4), tmp_path / "x.safetensors", dtype=torch.float32)
    lora = merge_ops.load(tmp_path / "x.safetensors")
    half = merge_ops.merge([lora], weights=[0.5])
    torch.testing.assert_close(half.delta(TO_Q) * 2, merge_ops.extract(*sd1, rank=4).delta(TO_Q))


def test_progress_and_its_exceptions(sd1):
    seen = []
    merge_ops.extract(*sd1, rank=1, progress=lambda done, total, name: seen.append((done, total)))
    assert seen[0] == (0, len(SD1)) and seen[-1] == (len(SD1), len(SD1))

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_ops.extract(*sd1, progress=stop)
