"""What cannot be extracted: refused, or left out by name; and parameters without a module."""

import pytest
import torch
from safetensors.torch import load_file

import merge_ops
from merge_ops import IncompatibleLoraError, MergeError, ParameterError
from tests.extracting.weights import (
    CLIP,
    SD1,
    UNET,
    assert_equal_deltas,
    differences,
    random_weights,
    tuned_from,
)

TO_Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


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
