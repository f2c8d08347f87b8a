"""What is extracted: a known LoRA comes back, any other difference as well as its rank allows."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import merge_ops
from merge_ops import IncompatibleLoraError, MergeError, ParameterError
from merge_ops.merging.svd import best_svd
from merge_ops.saving.kept import kept_by_extraction, percent
from tests.extracting.weights import CLIP, SD1, UNET, random_weights, tuned_from

TO_Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def differences(tuned, base):
    one, other = load_file(tuned), load_file(base)
    return {name: one[name].float() - other[name].float() for name in other}


def assert_equal_deltas(lora, wanted):
    """Each layer of a LoRA is one of the differences, whatever its name."""
    left = list(wanted.values())
    for name in lora.layers:
        delta = merge_ops.merge([lora]).delta(name)
        match = next(
            i
            for i, each in enumerate(left)
            if each.numel() == delta.numel() and torch.allclose(each.view_as(delta), delta, atol=5e-6)
        )
        left.pop(match)
    assert not left


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank must be a whole number"),
        ({"rank": True}, "rank must be a whole number"),
        ({"conv_rank": -1}, "conv_rank must be"),
        ({"energy": 0.0}, "energy is a share"),
        ({"energy": 95}, "energy is a share"),
        ({"energy": float("nan")}, "energy is a share"),
        ({"clamp": 1.5}, "clamp is a share"),
        ({"min_diff": -1.0}, "min_diff must be"),
        ({"min_diff": float("nan")}, "min_diff must be"),
        ({"device": "nowhere"}, "not available"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(given, message):
    with pytest.raises(ParameterError, match=message):
        merge_ops.extract("missing.safetensors", "missing.safetensors", **given)


def test_models_that_do_not_differ_are_refused(sd1):
    with pytest.raises(MergeError, match="base and base are the same in all 9 weights"):
        merge_ops.extract(sd1[1], sd1[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["tuned", "base"])
def test_numbers_that_are_none_are_refused_by_name(write, bad, side):
    base = random_weights(SD1)
    tuned = tuned_from(base)
    broken = {"tuned": tuned, "base": base}[side]
    broken[f"{UNET}.attn1.to_q.weight"] = broken[f"{UNET}.attn1.to_q.weight"].clone()
    broken[f"{UNET}.attn1.to_q.weight"][5, 5] = bad
    paths = write("tuned.safetensors", tuned), write("base.safetensors", base)
    with pytest.raises(MergeError, match=f"attn1.to_q of the {side} model holds NaN or infinity"):
        merge_ops.extract(*paths)


def test_missing_weights_and_other_shapes_are_named(write):
    """An inpainting model has more channels where its input comes in."""
    conv = "model.diffusion_model.input_blocks.0.0.weight"
    base = random_weights({**SD1, conv: (160, 4, 3, 3)})
    tuned = tuned_from(base)
    tuned[conv] = torch.zeros(160, 9, 3, 3)
    del tuned[f"{UNET}.attn2.to_k.weight"]
    tuned[f"{UNET}.attn2.to_v.weight"] = torch.ones(160, 768)
    extracted = merge_ops.extract(
        write("tuned.safetensors", tuned), write("base.safetensors", base), rank=4
    )  # fmt: skip
    left_out = {name.rpartition(".")[2]: why for name, why in extracted.found.left_out.items()}
    assert left_out == {
        "conv_in": "has the shape (160, 9, 3, 3), and in base (160, 4, 3, 3)",
        "to_k": "tuned has no such weight",
        "to_v": "base has no such weight",
    }
    assert len(extracted.outline.warnings) == 3


def test_a_part_that_one_model_lacks_is_one_note(write):
    base = random_weights(SD1)
    only_unet = {name: weight for name, weight in base.items() if not name.startswith(CLIP)}
    paths = write("tuned.safetensors", tuned_from(base)), write("base.safetensors", only_unet)
    extracted = merge_ops.extract(*paths, rank=4)
    note = "the text encoder of tuned (3 weights) is left out: base has none"
    assert note in extracted.found.notes and not extracted.outline.warnings


def test_models_of_two_architectures_are_refused(write):
    base = random_weights(SD1)
    other = random_weights(SD1 | {f"{UNET}.attn2.to_k.weight": (160, 1024)})
    with pytest.raises(IncompatibleLoraError, match=r"tuned is SD1\.x and base is SD2\.x"):
        merge_ops.extract(write("tuned.safetensors", base), write("base.safetensors", other))
    flux = random_weights({"double_blocks.0.img_attn.qkv.weight": (96, 32)})
    with pytest.raises(IncompatibleLoraError, match="give a model and its own base"):
        merge_ops.extract(write("tuned.safetensors", base), write("flux.safetensors", flux))
    small = random_weights({name: tuple(side // 2 for side in shape) for name, shape in SD1.items()})
    with pytest.raises(IncompatibleLoraError, match=r"another shape in|give a model and its own base"):
        merge_ops.extract(write("tuned.safetensors", base), write("small.safetensors", small))


def test_names_of_two_programs_are_refused(write):
    names = ("double_blocks.0.img_attn.qkv", "double_blocks.0.txt_attn.qkv", "single_blocks.0.linear1")
    original = random_weights({f"{name}.weight": (96, 32) for name in names})
    other = ("attn.to_q", "attn.to_k", "attn.add_q_proj")
    diffusers = random_weights({f"transformer_blocks.0.{name}.weight": (32, 32) for name in other})
    diffusers |= random_weights({"single_transformer_blocks.0.attn.to_q.weight": (32, 32)})
    paths = write("tuned.safetensors", original), write("base.safetensors", diffusers)
    with pytest.raises(
        IncompatibleLoraError, match=r"give both in one layout|have no weight of the same name"
    ):
        merge_ops.extract(*paths)


def test_bare_parameters_of_diffusion_models_have_comfyuis_names(write, tmp_path):
    """They are differences as a whole, like biases: of any number of dimensions."""
    shapes = {
        "blocks.0.self_attn.q.weight": (64, 64),
        "blocks.0.modulation": (1, 6, 64),
        "registers": (8, 64),
        "blocks.0.norm.scale": (64,),
    }
    base = random_weights(shapes)
    changed = random_weights(shapes, seed=4)
    tuned = {key: weight + changed[key] for key, weight in base.items()}
    paths = write("tuned.safetensors", tuned), write("base.safetensors", base)
    merge_ops.save(merge_ops.extract(*paths, rank=64), tmp_path / "x.safetensors", dtype=torch.float32)
    written = load_file(tmp_path / "x.safetensors")
    assert {"diffusion_model.blocks.0.norm.scale.diff", "lora_unet_blocks_0_self_attn_q.alpha"} <= set(
        written
    )
    for name in ("blocks.0.modulation", "registers"):
        up, down = (written[f"diffusion_model.{name}.lora_{part}.weight"] for part in ("up", "down"))
        scale = written[f"diffusion_model.{name}.alpha"] / down.shape[0]
        delta = (up.flatten(1) @ down.flatten(1) * scale).view(shapes[name])
        torch.testing.assert_close(delta, changed[name], atol=1e-5, rtol=0)
    assert_equal_deltas(merge_ops.load(tmp_path / "x.safetensors"), differences(*paths))


def test_a_parameter_without_a_name_is_left_out_with_its_share(write):
    """Under diffusers' names, which ComfyUI knows for layers only."""
    name = "transformer_blocks.0.attn1.to_q.weight"
    base = random_weights({name: (64, 64), "transformer_blocks.0.scale_shift_table": (6, 64)})
    tuned = {key: weight + 0.01 for key, weight in base.items()}
    paths = [
        write(f"{side}/transformer/diffusion_pytorch_model.safetensors", each).parents[1]
        for side, each in (("tuned", tuned), ("base", base))
    ]
    for path in paths:
        (path / "model_index.json").write_text("{}")
    extracted = merge_ops.extract(*paths)
    assert len(extracted.layers) == 1
    (warning,) = extracted.outline.warnings
    share = 6 * 64 / (6 * 64 + 64 * 64)
    assert "scale_shift_table" in warning and f"({100 * share:.2g} % of the difference)" in warning
    assert extracted.found.held == pytest.approx(1 - share, abs=1e-4)


def test_progress_and_its_exceptions(sd1):
    seen = []
    merge_ops.extract(*sd1, rank=1, progress=lambda done, total, name: seen.append((done, total)))
    assert seen[0] == (0, len(SD1)) and seen[-1] == (len(SD1), len(SD1))

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_ops.extract(*sd1, progress=stop)
