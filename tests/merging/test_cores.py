"""The engine of methods on factors: every kind of adapter, batches, memory, saving, order of the parts."""

from dataclasses import replace

import pytest
import torch

import merge_ops
from merge_ops import METHODS, Lora, LowRank, ParameterError, Recipe
from merge_ops.adapters import Bound, Full, Hadamard, Kronecker, Trained
from merge_ops.lora import Layer
from merge_ops.merging import cores
from merge_ops.merging.align import align
from merge_ops.merging.batches import group_into_batches
from merge_ops.merging.request import Request, Settings
from tests.laws import CASES, WEIGHTS, assert_close, assert_same_bits, deltas, merge, moments_of

OF_FACTORS = [case for case in CASES if METHODS[case.values[0]].kind != "entrywise"]
of_factors = pytest.mark.parametrize(("name", "settings"), OF_FACTORS)
SHAPE = (24, 18)


def some(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kinds() -> dict[str, Layer]:
    """A layer of every kind, all of one shape."""
    rows, columns = SHAPE
    return {
        "low rank": LowRank(some(rows, 3), some(3, columns), 0.5),
        "loha of low rank": Hadamard(some(rows, 2), some(2, columns), some(rows, 3), some(3, columns), 0.7),
        "loha of full rank": Hadamard(some(rows, 5), some(5, columns), some(rows, 5), some(5, columns), 0.7),
        "lokr": Kronecker(some(4, 3), some(6, 6), 6, 0.3),
        "lokr, decomposed": Kronecker(some(4, 3), LowRank(some(6, 2), some(2, 6), 1.5), 2, 0.3),
        "lokr, both decomposed": Kronecker(
            LowRank(some(4, 1), some(1, 3)), LowRank(some(6, 2), some(2, 6)), 2
        ),
        "full": Full(some(rows, columns), 2.0),
        "wide": Full(some(rows, columns).T.contiguous().T, 2.0),
        "bound": Bound(Trained(some(rows, columns)), some(rows, columns, seed=1)),
        "bias": LowRank(some(rows, 1), torch.ones(1, 1), 2.0, "vector"),
    }


RANKS = {
    "low rank": 3,
    "loha of low rank": 6,
    "loha of full rank": 18,
    "lokr": 18,
    "lokr, decomposed": 6,
    "lokr, both decomposed": 2,
    "full": 18,
    "wide": 18,
    "bound": 18,
    "bias": 1,
}


@pytest.mark.parametrize("kind", RANKS)
def test_every_kind_is_a_product_exactly(kind):
    """Of its own rank where that is lower than the sides."""
    layer = kinds()[kind]
    (aligned,) = align([Lora("a", {"x": layer})], Request.of([Lora("a", {"x": layer})]))
    up, down, ranks = cores.stacked_factors(aligned, None)
    assert up.dtype == down.dtype == torch.float32
    torch.testing.assert_close(up @ down, layer.matrix(), rtol=1e-5, atol=1e-5)
    assert ranks == (RANKS[kind],)


def test_parts_are_stacked_in_the_order_of_the_layer(stack):
    """Column by column, with alpha on the ups and no weight anywhere; ``indices`` say whose they are."""
    loras = [stack[2], stack[0], stack[3], stack[1]]
    for aligned in align(loras, Request.of(loras, WEIGHTS)):
        up, down, ranks = cores.stacked_factors(aligned, None)
        assert aligned.count == 4 and len(aligned.indices) == len(aligned.parts)
        start = 0
        for index, rank in zip(aligned.indices, ranks, strict=True):
            part, own = loras[index].layers[aligned.name], slice(start, start + rank)
            assert torch.equal(down[own], part.down)
            assert torch.equal(up[:, own], part.up * part.scale)
            start += rank


@of_factors
def test_kinds_that_are_no_product_merge_by_their_deltas(name, settings):
    """As if each were written as a LoRA of full rank."""
    layers = kinds()
    names = ("low rank", "loha of full rank", "lokr, decomposed", "bound")
    loras = [Lora(f"lora{i}", {"x": layers[kind]}) for i, kind in enumerate(names)]
    as_loras = []
    for lora in loras:
        u, s, vh = torch.linalg.svd(lora.layers["x"].matrix().double(), full_matrices=False)
        as_loras.append(replace(lora, layers={"x": LowRank((u * s).float(), vh.float())}, origin=lora))
    found = merge(loras, WEIGHTS, name, **settings)
    assert found.factors("x") is None and found.report.layers[0].rank_out is None
    assert_close(deltas(found), deltas(merge(as_loras, WEIGHTS, name, **settings)), 3e-5)


@of_factors
def test_chunks_change_nothing(name, settings, stack, monkeypatch):
    wanted = deltas(merge(stack, WEIGHTS, name, **settings))
    monkeypatch.setattr(cores, "_CHUNK", 50)
    assert_close(deltas(merge(stack, WEIGHTS, name, **settings)), wanted, 1e-6)


@of_factors
def test_layers_merged_together_are_those_merged_alone(name, settings, make_lora):
    """Bit for bit, whatever else is in the file."""
    shapes = {f"layer.{i}": (40 + i, 30 - i) for i in range(5)}
    loras = [make_lora(n, shapes=shapes, rank=3 + i, seed=i) for i, n in enumerate("abc")]
    chosen = Settings.of(name, settings)
    groups = list(group_into_batches(align(loras, Request.of(loras)), chosen, None))
    assert len(groups) == (1 if chosen.method.kind == "core" else 5)
    moments = moments_of(loras, WEIGHTS[:3])
    given = {"moments": moments} if chosen.method.needs_recording else {}
    together = merge_ops.merge(loras, WEIGHTS[:3], name, **settings, **given)
    for layer in shapes:
        alone = [Lora(lora.name, {layer: lora.layers[layer]}) for lora in loras]
        found = merge_ops.merge(alone, WEIGHTS[:3], name, **settings, **given)
        assert_same_bits(deltas(found), {layer: together.delta(layer)})


@of_factors
def test_the_result_is_low_rank_and_scaled(name, settings, stack):
    merged = merge(stack, WEIGHTS, name, scale=-2.0, **settings)
    plain = merge(stack, WEIGHTS, name, **settings)
    for row in merged.report.layers:
        up, down = merged.factors(row.name)
        layer = merged.layer(row.name)
        assert up.shape[1] == down.shape[0] == row.rank_out <= sum(layer.aligned.ranks)
        torch.testing.assert_close(up @ down, layer.matrix())
        torch.testing.assert_close(layer.matrix(), -2 * plain.layer(row.name).matrix(), rtol=1e-4, atol=1e-5)
        tiles = list(layer.tiles(torch.device("cpu")))
        torch.testing.assert_close(torch.cat([tile for _, tile in tiles]), layer.matrix())


@of_factors
def test_saved_exactly_and_run_again_from_the_recipe(name, settings, make_lora, tmp_path):
    """Law 6; the file's recipe gives the same bits, or says that it needs the recording."""
    block = "unet.mid_block.attentions.0"
    shapes = {f"{block}.proj_in": (40, 28), "unet.conv_in": ("conv", 16, 5 * 9, (3, 3))}
    stack = [make_lora(f"lora{i}", shapes=shapes, rank=2 + i, alpha=3, seed=i) for i in range(4)]
    merged = merge(stack, WEIGHTS, name, **settings)
    report = merge_ops.save(merged, tmp_path / "out.safetensors", dtype=torch.float32)
    assert report.total_error < 1e-6
    saved = merge_ops.load(tmp_path / "out.safetensors")
    assert_close({k: layer.delta() for k, layer in saved.layers.items()}, deltas(merged), 1e-5)
    recipe = Recipe.of(merged)
    if METHODS[name].needs_recording:
        with pytest.raises(ParameterError, match="needs a recording"):
            recipe.run(stack)
    else:
        assert_same_bits(deltas(recipe.run(stack)), deltas(merged))


@of_factors
def test_a_vast_delta_is_never_formed(name, settings, make_lora):
    """100000 x 100000 would be 40 GB."""
    size = 100_000
    loras = [make_lora(n, shapes={"vast": (size, size)}, rank=2, seed=i) for i, n in enumerate("ab")]
    merged = merge(loras, [0.7, -0.4], name, **settings)
    up, down = merged.factors("vast")
    assert up.shape == (size, 4) and down.shape == (4, size)
    assert merge(loras, [0.7, -0.4], name, rank=3, **settings).factors("vast")[0].shape == (size, 3)


@of_factors
def test_there_is_no_factor_space(name, settings, stack):
    with pytest.raises(ParameterError, match=f"{name} works on whole deltas; it has no space='factors'"):
        merge(stack, WEIGHTS, name, space="factors", **settings)


@of_factors
def test_directions_that_are_hardly_there_do_no_harm(name, settings, make_lora):
    """Singular values over twelve decades: finite, and alone the LoRA itself."""
    loras = [make_lora(n, shapes={"x": (40, 30)}, rank=12, decay=0.1, seed=i) for i, n in enumerate("ab")]
    assert merge(loras, [0.7, -0.4], name, **settings).delta("x").isfinite().all()
    if "alone_at_density_1" not in METHODS[name].breaks:
        full = {"density": 1.0} if name == "knots_ties" else {}
        found = merge(loras[:1], [0.7], name, **settings, **full)
        assert_close(deltas(found), {"x": 0.7 * loras[0].layers["x"].delta()})
