"""LoRAs for fewer steps: told from others, and added after a merge instead of voting in it."""

import json

import pytest
import torch

import merge_ops
from merge_ops import METHODS, ParameterError
from merge_ops.lora import Lora, LowRank
from merge_ops.merging.step_distilled import is_step_distilled
from merge_ops.recipes import Recipe
from tests.cli.test_commands import run_here

NAMES = [f"unet.mid_block.attentions.0.proj_{side}" for side in ("in", "out")]
VOTING = [name for name, method in METHODS.items() if not (method.linear or method.needs_recording)]


def lora(name, seed, flat=True, names=NAMES, metadata=None, rank=6):
    """Random factors have a flat spectrum; otherwise each direction has a quarter of the one before."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.ones(rank) if flat else 0.25 ** torch.arange(rank)

    def layer():
        up, down = torch.randn(24, rank, generator=draw) * sizes, torch.randn(rank, 20, generator=draw)
        return LowRank(up, down, 0.5)

    return Lora(name, {each: layer() for each in names}, metadata=metadata or {})


@pytest.mark.parametrize(
    "name",
    [
        "sdxl_lightning_8step_lora", "Hyper-SDXL-4steps-lora", "hyper_sd15", "flux-turbo-alpha",
        "Qwen-Image-Lightning-4steps-V1.0", "FLUX.1-Turbo", "pcm_sdxl_normalcfg_8step", "LightningLoRA",
        "SDA_v1",
    ],
)  # fmt: skip
def test_told_by_a_word(name):
    """As their authors call them; a spectrum of few directions speaks against it."""
    assert is_step_distilled(lora(name, 1))
    assert not is_step_distilled(lora(name, 1, flat=False))


@pytest.mark.parametrize(
    "name",
    [
        "lcm-lora-sdxl", "pytorch_lora_weights_LCM", "HyperSD", "TCD-SDXL", "dmd2_sdxl_4step_lora",
        "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank64", "CausVid_14B", "wan_accvid",
        "Wan2.1_Self-Forcing_T2V", "wan_self_forcing", "SelfForcing14B", "lcm15",
    ],
)  # fmt: skip
def test_told_by_its_own_name(name):
    """Names that nothing else has: such files are often cut from a model by SVD, whose spectrum falls."""
    assert is_step_distilled(lora(name, 1))
    assert is_step_distilled(lora(name, 1, flat=False))


@pytest.mark.parametrize(
    "name",
    ["ink_wash", "stepsisters", "style_2000steps", "mia-000012", "alchemist", "hyperion2", "breakfast",
     "step_into_light", "vlcmx", "mystery"],
)  # fmt: skip
def test_other_names(name):
    """A flat spectrum alone says nothing: short trainings have it too."""
    assert not is_step_distilled(lora(name, 1))


def test_told_by_metadata():
    """By the title that its trainer gave it."""
    for key in ("modelspec.title", "ss_output_name"):
        assert is_step_distilled(lora("model", 1, metadata={key: "SDXL Lightning"}))
    assert not is_step_distilled(lora("model", 1, metadata={"modelspec.description": "works with lcm"}))


@pytest.mark.parametrize("method", VOTING)
def test_added_after_the_merge(method):
    """The others are merged as without it, and then its whole change is added at its weight."""
    a, b, fast = lora("ink", 1), lora("mia", 2), lora("lcm", 3)
    whole = merge_ops.merge([a, fast, b], [0.7, 0.9, -0.4], method, seed=5, scale=1.5)
    others = merge_ops.merge([a, b], [0.7, -0.4], method, seed=5, scale=1.5)
    for name in NAMES:
        wanted = others.delta(name) + 1.5 * 0.9 * fast.layers[name].matrix()
        torch.testing.assert_close(whole.delta(name), wanted, rtol=1e-4, atol=1e-5)
        tiles = [tile.clone() for _, tile in whole.layer(name).tiles(torch.device("cpu"))]
        torch.testing.assert_close(torch.cat(tiles), wanted, rtol=1e-4, atol=1e-5)
        parts = [make() for _, make in sorted(whole.layer(name).addends(), key=lambda each: each[0])]
        torch.testing.assert_close(sum(parts), wanted, rtol=1e-4, atol=1e-5)
        pair = whole.factors(name)
        assert (pair is None) == (others.factors(name) is None)
        if pair is not None:
            torch.testing.assert_close(pair[0] @ pair[1], wanted, rtol=1e-4, atol=1e-5)
    assert whole.added_after == ["lcm is a step-distillation LoRA: it is added after the merge"]
    assert all(line.loras == 3 for line in whole.report.layers)


@pytest.mark.parametrize("method", ["ties", "even", "knots_ties"])
def test_truncated_and_saved(method, tmp_path):
    """A rank is cut from the sum, and a file holds it; the recipe does the same again."""
    loras = [lora("ink", 1), lora("lcm", 2), lora("mia", 3)]
    for each in loras:
        merge_ops.save(merge_ops.merge([each]), tmp_path / f"{each.name}.safetensors", dtype=torch.float32)
    loras = [merge_ops.load(tmp_path / f"{each.name}.safetensors") for each in loras]
    merged = merge_ops.merge(loras, [0.7, 1.0, 0.4], method)
    cut = merge_ops.merge(loras, [0.7, 1.0, 0.4], method, rank=4)
    for name in NAMES:
        s = torch.linalg.svdvals(merged.delta(name))
        best = float(s[4:].square().sum())
        error = float((cut.delta(name) - merged.delta(name)).square().sum())
        assert error == pytest.approx(best, rel=1e-3)
        assert cut.report.layers[0].rank_out == 4
    merge_ops.save(merged, tmp_path / "whole.safetensors", 20, dtype=torch.float32)
    again = merge_ops.load(tmp_path / "whole.safetensors")
    for name in NAMES:
        torch.testing.assert_close(again.layers[name].matrix(), merged.delta(name), rtol=1e-4, atol=1e-4)
    recipe = Recipe.parse(again.metadata["lora_alloy"])
    assert recipe.apart == [False, True, False]
    for name in NAMES:
        torch.testing.assert_close(recipe.run(loras).delta(name), merged.delta(name), rtol=1e-4, atol=1e-4)
    plain = json.loads(again.metadata["lora_alloy"])
    for source in plain["sources"]:
        source.pop("apart", None)  # as recipes of before have it
    old, voted = (
        Recipe.parse(plain).run(loras),
        merge_ops.merge(loras, [0.7, 1.0, 0.4], method, apart=[False] * 3),
    )
    torch.testing.assert_close(old.delta(NAMES[0]), voted.truncated(20).delta(NAMES[0]), rtol=1e-4, atol=1e-4)
    with pytest.raises(ParameterError, match="true or false"):
        Recipe.parse({**plain, "sources": [{**plain["sources"][0], "apart": 1}]})


def test_what_only_it_has():
    """Layers of its own, and a list of nothing else, are added whole."""
    fast = lora("turbo", 1)
    merged = merge_ops.merge([lora("ink", 2, names=NAMES[:1]), fast], method="ties", density=0.3)
    torch.testing.assert_close(merged.delta(NAMES[1]), fast.layers[NAMES[1]].matrix())
    alone = merge_ops.merge([fast], [0.5], "dare_ties", density=0.3)
    torch.testing.assert_close(alone.delta(NAMES[0]), 0.5 * fast.layers[NAMES[0]].matrix())
    assert merged.factors(NAMES[1]) is not None and alone.factors(NAMES[0]) is not None
    blocked = merge_ops.merge([lora("ink", 2), fast], method="ties", blocks=[None, "mid:0"])
    assert torch.equal(
        blocked.delta(NAMES[0]), merge_ops.merge([lora("ink", 2)], method="ties").delta(NAMES[0])
    )


def test_where_it_makes_no_difference():
    """Sums, PEFT's types and factor space take all LoRAs."""
    loras = [lora("ink", 1), lora("lcm", 2)]
    for how in ({"method": "linear"}, {"combination_type": "ties"}, {"method": "ties", "space": "factors"}):
        merged = merge_ops.merge(loras, **how)
        plain = merge_ops.merge([loras[0], lora("mia", 2)], **how)
        assert merged.added_after == []
        assert torch.equal(merged.delta(NAMES[0]), plain.delta(NAMES[0]))


def test_said_otherwise():
    """``apart`` says which, and is checked."""
    loras = [lora("ink", 1), lora("lcm", 2), lora("mia", 3)]
    voted = merge_ops.merge(loras, method="ties", apart=[False] * 3)
    named = [loras[0], lora("x", 2), loras[2]]
    torch.testing.assert_close(voted.delta(NAMES[0]), merge_ops.merge(named, method="ties").delta(NAMES[0]))
    apart = merge_ops.merge(loras, method="ties", apart=[True, False, False])
    assert apart.added_after == ["ink is added after the merge of the others"]
    with pytest.raises(ParameterError, match="3 entries of apart"):
        merge_ops.merge(loras, method="ties", apart=[True])


def test_on_the_command_line(tmp_path, capsys):
    """It is said, and can be switched off."""
    for each in (lora("ink", 1), lora("lcm", 2)):
        merge_ops.save(merge_ops.merge([each]), tmp_path / f"{each.name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("ink", "lcm")]
    said = "lcm is a step-distillation LoRA: it is added after the merge"
    assert said in run_here(capsys, "merge", *files, "--method", "ties", "--dry-run")[1]
    merged = run_here(capsys, "merge", *files, "--method", "ties", "--speed-loras", "merged", "--dry-run")
    assert merged[0] == 0 and said not in merged[1]
