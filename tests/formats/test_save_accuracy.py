"""The written file is the merge, to rounding or to the error that the report gives."""

import pytest
import torch

import merge_ops
from merge_ops import MergeError

# file name -> (layers, rank, alpha): two that share every layer at other ranks, of three kinds of weights
SHAPES = {
    "lora_unet_mid_block_attentions_0_proj_in": (48, 40, 1, 1),
    "lora_unet_mid_block_resnets_0_conv1": (24, 10, 3, 3),
    "lora_te_text_model_encoder_layers_0_mlp_fc1": (40, 64),
}
EPS = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2**-24}
METHODS = [
    ("linear", {}),
    ("ties", {"density": 0.4}),
    ("dare_linear", {"density": 0.6}),
    ("dare_ties", {"density": 0.6, "majority_sign_method": "frequency"}),
    ("magnitude_prune", {"density": 0.3}),
]


@pytest.fixture
def loras(write, kohya_tensors):
    """Three LoRAs of ranks 2 to 5; the last one has one layer only."""
    last = {"lora_unet_mid_block_resnets_0_conv1": (24, 10, 3, 3)}
    return [
        merge_ops.load(write(kohya_tensors(SHAPES, (4, 3), 2.0, seed=1), name="a.safetensors")),
        merge_ops.load(write(kohya_tensors(SHAPES, (2, 5), 6.0, seed=2), name="b.safetensors")),
        merge_ops.load(write(kohya_tensors(last, (3,), 3.0, seed=3), name="c.safetensors")),
    ]


def true_errors(merged, path):
    """Relative Frobenius error of each layer of a file against the merge, and of all layers, in float64."""
    read = merge_ops.load(path)
    assert read.layers.keys() == set(merged.layers)
    errors, squares = {}, [0.0, 0.0]
    for name, layer in read.layers.items():
        stored = layer.scale * layer.up.double() @ layer.down.double()
        pair = merged.factors(name)
        exact = pair[0].double() @ pair[1].double() if pair else merged.layer(name).matrix().double()
        errors[name] = float((stored - exact).norm() / exact.norm())
        squares = [squares[0] + float((stored - exact).norm()) ** 2, squares[1] + float(exact.norm()) ** 2]
    return errors, (squares[0] / squares[1]) ** 0.5


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_low_rank_results_are_exact_to_rounding(dtype, form, loras, tmp_path):
    merged = merge_ops.merge(loras, [0.7, -1.3, 0.2])
    merge_ops.save(merged, tmp_path / "out.safetensors", format=form, dtype=dtype)
    read = merge_ops.load(tmp_path / "out.safetensors")
    for name in merged.layers:
        error = (read.layers[name].delta() - merged.delta(name)).norm() / merged.delta(name).norm()
        assert error < 2.5 * EPS[dtype]
        assert read.layers[name].up.dtype == dtype


@pytest.mark.parametrize(("method", "params"), METHODS, ids=[name for name, _ in METHODS])
@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_reported_errors_are_the_true_ones(method, params, rank, dtype, loras, tmp_path):
    merged = merge_ops.merge(loras, [0.7, 1.3, 0.2], method, **params)
    report = merge_ops.save(merged, tmp_path / "out.safetensors", rank, dtype=dtype)
    errors, total = true_errors(merged, tmp_path / "out.safetensors")
    for line in report.layers:
        assert line.error == pytest.approx(errors[line.name], rel=1e-3, abs=3e-7)
        assert 1 - line.energy_kept == pytest.approx(line.error**2, rel=2e-2, abs=3e-6)
    assert report.largest_error == max(line.error for line in report.layers)
    assert report.total_error == pytest.approx(total, rel=1e-3, abs=3e-7)


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_the_best_approximation_of_the_rank(form, loras, tmp_path):
    """The error of a truncation is what the discarded singular values say, for linear and for full rank."""
    for method in ("linear", "ties"):
        merged = merge_ops.merge(loras, method=method)
        path = tmp_path / f"{method}.safetensors"
        report = merge_ops.save(merged, path, 3, form, torch.float32)
        for line in report.layers:
            s = torch.linalg.svdvals(merged.layer(line.name).matrix().double())
            assert line.rank == 3
            assert line.error == pytest.approx(float(s[3:].norm() / s.norm()), rel=2e-2)


def test_rank_is_never_above_the_sides_of_the_weight(write, kohya_tensors, tmp_path):
    shapes = {"lora_unet_conv_out": (4, 12, 3, 3), "lora_unet_mid_block_attentions_0_proj_in": (32, 32)}
    loras = [
        merge_ops.load(write(kohya_tensors(shapes, (3,), 1.0, seed), name=f"{seed}.safetensors"))
        for seed in range(3)
    ]
    for method, rank in (("linear", None), ("linear", 64), ("ties", 64)):
        merged = merge_ops.merge(loras, method=method)
        path = tmp_path / f"{method}{rank}.safetensors"
        report = merge_ops.save(merged, path, rank, dtype=torch.float32)
        ranks = {line.name: line.rank for line in report.layers}
        assert ranks["unet.conv_out"] == 4
        assert report.largest_error < 1e-6
        assert true_errors(merged, path)[1] < 1e-6


def test_an_odd_rank_above_256_in_bfloat16(write, kohya_tensors, tmp_path):
    """257 is no bfloat16; neither alpha nor the scale may be rounded."""
    lora = merge_ops.load(
        write(kohya_tensors({"lora_unet_mid_block_attentions_0_proj_in": (300, 300)}, (257,)))
    )
    merged = merge_ops.merge([lora])
    report = merge_ops.save(merged, tmp_path / "out.safetensors", dtype=torch.bfloat16)
    assert report.layers[0].rank == 257
    assert true_errors(merged, tmp_path / "out.safetensors")[1] < 2.5 * 2**-8


def test_extreme_scales_stay_exact_in_half_precision(write, kohya_tensors, tmp_path):
    """A huge up with a tiny down is evened out before it is rounded."""
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = kohya_tensors({stem: (48, 40)}, (4,))
    tensors[f"{stem}.lora_up.weight"] *= 1e7
    tensors[f"{stem}.lora_down.weight"] *= 1e-7
    merged = merge_ops.merge([merge_ops.load(write(tensors))])
    assert merge_ops.save(merged, tmp_path / "out.safetensors").largest_error < 1e-3


def test_overflow_of_half_precision_is_an_error_that_says_so(write, kohya_tensors, tmp_path):
    lora = merge_ops.load(write(kohya_tensors({"lora_unet_mid_block_attentions_0_proj_in": (48, 40)}, (4,))))
    merged = merge_ops.merge([lora], [1e12])
    with pytest.raises(
        MergeError, match=r"unet.mid_block.attentions.0.proj_in.*float16.*dtype=torch.float32"
    ):
        merge_ops.save(merged, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    assert merge_ops.save(merged, tmp_path / "out.safetensors", dtype=torch.float32).largest_error < 1e-6


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_merge_that_cancels_can_be_saved(method, rank, loras, tmp_path):
    merged = merge_ops.merge([loras[0], loras[0]], [1.0, -1.0], method)
    report = merge_ops.save(merged, tmp_path / "out.safetensors", rank)
    assert report.largest_error <= 1e-3
    for layer in merge_ops.load(tmp_path / "out.safetensors").layers.values():
        assert layer.delta().norm() < 1e-5
