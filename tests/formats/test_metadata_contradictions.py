"""Metadata that contradict the tensors or each other, and scales of metadata in what is saved."""

import json

import pytest
import torch
from lycoris.modules.lokr import LokrModule
from safetensors.torch import load_file

import merge_ops
from merge_ops.cli import main
from merge_ops.errors import LoraFormatError
from tests.formats.test_metadata_scale import BLOCK, PATH, draw, pair


@pytest.mark.parametrize("said", [{"lora_alpha": "64", "r": "16"}, {"ss_network_alpha": "64"}])
def test_alpha_tensors_win_and_a_warning_names_both(said, scales):
    found, warnings = scales(pair(f"transformer.{PATH}", alpha=8), said)
    assert found == [0.5]
    (warning,) = warnings
    assert "64" in warning
    assert "8" in warning


@pytest.mark.parametrize(
    "said",
    [
        {"lora_alpha": "8", "r": "16", "ss_network_alpha": "8", "ss_network_dim": "16"},
        {"ss_network_alpha": "8.0", "ss_network_dim": "Dynamic"},
        {"ss_network_alpha": "2", "ss_network_args": '{"rs_lora": "True"}'},
        {"lora_alpha": "None", "rank": ""},
        {"modelspec.alpha": "3", "ss_tag_frequency": '{"lora_alpha": {"alpha": 3}}'},
        {
            "lora_alloy": '{"lora_alpha": 3}',
            "config": '{"transformer": {"num_layers": 3}}',
            "transformer": "{",
        },
    ],
)
def test_no_warning_without_a_contradiction(said, scales):
    assert scales(pair(f"transformer.{PATH}", alpha=8), said) == ([0.5], ())


def test_tensors_with_and_without_alpha_in_one_file(scales):
    tensors = pair(f"a.{PATH}", alpha=4) | pair(f"b.{PATH}")
    found, warnings = scales(tensors, {"lora_alpha": "8"})
    assert found == [0.25, 0.5]
    assert len(warnings) == 1


def test_notes_of_kohya_do_not_scale_a_file_without_alpha_tensors(scales):
    """Kohya's scripts, ComfyUI and diffusers all take scale 1 there, so a weight is advised instead."""
    found, warnings = scales(pair(f"transformer.{PATH}"), {"ss_network_alpha": "4", "ss_network_dim": "16"})
    assert found == [1.0]
    (warning,) = warnings
    assert "ss_network_alpha is 4" in warning
    assert "0.25" in warning
    assert scales(pair(PATH), {"ss_network_alpha": "16", "ss_network_dim": "16"}) == ([1.0], ())


@pytest.mark.parametrize(
    "said",
    [
        {"lora_alpha": "inf"}, {"alpha": "nan"}, {"alpha": "-Infinity"}, {"lora_alpha": "8", "alpha": "4"},
        {"alpha_pattern": '{"to_q": "x"}'}, {"lora_alpha": "1e999"},
        {"transformer.lora_alpha": "8", "unet.lora_alpha": "4"},
    ],
)  # fmt: skip
def test_what_cannot_be_decided_is_refused_where_it_is_used(said, write):
    path = write(pair(PATH), said)
    with pytest.raises(LoraFormatError, match=r"some\.safetensors: .*(alpha|scale)"):
        merge_ops.load(path)


def test_an_alpha_that_is_not_used_is_not_refused(scales):
    assert scales(pair(PATH, alpha=8), {"lora_alpha": "inf"})[0] == [0.5]


def test_an_alpha_that_is_no_number_is_named(scales):
    """Diffusers ignores it with a warning, too."""
    found, (warning,) = scales(pair(PATH), {"alpha": "premultiplied"})
    assert found == [1.0]
    assert "'premultiplied'" in warning


def test_diffusers_own_entry_wins(scales):
    own = json.dumps({"transformer.r": 16, "transformer.lora_alpha": 8})
    found, (warning,) = scales(pair(f"transformer.{PATH}"), {"lora_adapter_metadata": own, "lora_alpha": "4"})
    assert found == [0.5]
    assert "alpha 4" in warning


def test_a_whole_lokr_has_scale_one_and_a_warning(write):
    """Its trainer applied 1 / 32, LyCORIS and ComfyUI apply 1: ComfyUI issue 15114."""
    stem = "lora_unet_blocks_0_self_attn_q_proj"
    tensors = {
        f"{stem}.lokr_w1": draw(4, 4),
        f"{stem}.lokr_w2": draw(5, 6),
        f"{stem}.alpha": torch.tensor(1.0),
    }
    said = {"ss_network_module": "lycoris.kohya", "ss_network_dim": "32", "ss_network_alpha": "1"}
    for metadata in (said, {"alpha": "1", "rank": "32"}):
        lora = merge_ops.load(write(tensors, metadata))
        (layer,) = lora.layers.values()
        torch.testing.assert_close(layer.delta(), torch.kron(*list(tensors.values())[:2]))
        (warning,) = lora.warnings
        assert "alpha 1 and the stated rank 32" in warning
        assert "0.03125" in warning


def test_what_lycoris_writes_for_a_whole_lokr_is_no_contradiction(write):
    """Its alpha is then the dimension."""
    module = LokrModule("x", torch.nn.Linear(24, 20, bias=False), 1.0, lora_dim=32, alpha=1, factor=4)
    tensors = {f"lora_unet_x.{key}": value for key, value in module.state_dict().items() if "lo" in key}
    tensors["lora_unet_x.alpha"] = module.state_dict()["alpha"]
    said = {"ss_network_dim": "32", "ss_network_alpha": "1", "ss_network_module": "lycoris.kohya"}
    assert (
        merge_ops.load(
            write({key: draw(*t.shape) if t.ndim else t for key, t in tensors.items()}, said)
        ).warnings
        == ()
    )


def as_stock_reads(path):
    """The deltas of a file for a reader that knows nothing of metadata: alpha tensors, or scale 1."""
    tensors = load_file(path)
    for key, down in tensors.items():
        for down_end, up_end in (
            (".lora_A.weight", ".lora_B.weight"),
            (".lora_down.weight", ".lora_up.weight"),
        ):
            if key.endswith(down_end):
                stem = key.removesuffix(down_end)
                alpha = float(tensors.get(f"{stem}.alpha", down.shape[0]))
                yield alpha / down.shape[0] * tensors[stem + up_end].float() @ down.float()


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@pytest.mark.parametrize("stem", [f"transformer.{PATH}", f"diffusion_model.{BLOCK}"])
@pytest.mark.parametrize("rank", [None, 16])
def test_saved_files_have_the_right_scale_for_every_reader(form, stem, rank, write, tmp_path):
    tensors = pair(stem)
    lora = merge_ops.load(
        write(tensors, {"transformer.lora_alpha": "64", "rank": "16", "config": '{"alpha": 64}'})
    )
    wanted = 4 * tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]
    target = tmp_path / "saved.safetensors"
    merge_ops.save(merge_ops.merge([lora], rank=rank), target, format=form, dtype=torch.float32)
    (stock,) = as_stock_reads(target)
    torch.testing.assert_close(stock, wanted, rtol=1e-4, atol=1e-5)
    again = merge_ops.load(target)
    (layer,) = again.layers.values()
    torch.testing.assert_close(layer.delta(), wanted, rtol=1e-4, atol=1e-5)
    assert again.warnings == ()
    assert not {"transformer.lora_alpha", "rank", "config"} & again.metadata.keys()


def test_the_command_line_reads_it_too(write, tmp_path, capsys):
    """Inspect, resize and a recipe all take the file through the same reader."""
    tensors = pair(f"transformer.{PATH}")
    source = write(tensors, {"lora_alpha": "64", "rank": "16"}, "turbo.safetensors")
    assert main(["inspect", str(source), "--json"]) == 0
    (fact,) = json.loads(capsys.readouterr().out)["loras"]
    assert list(fact["scales"]) == ["4"]
    resized, again = tmp_path / "small.safetensors", tmp_path / "again.safetensors"
    assert main(["resize", str(source), "--rank", "16", "--dtype", "float32", "-o", str(resized)]) == 0
    assert main(["recipe", "run", str(resized), "--folder", str(tmp_path), "-o", str(again)]) == 0
    wanted = 4 * tensors[f"transformer.{PATH}.lora_B.weight"] @ tensors[f"transformer.{PATH}.lora_A.weight"]
    for path in (resized, again):
        (stock,) = as_stock_reads(path)
        torch.testing.assert_close(stock, wanted, rtol=2e-2, atol=2e-3)


def test_the_weights_of_a_peft_folder_without_its_configuration(scales):
    """Its scale is lost, which nothing in the file shows but the names."""
    tensors = pair(f"base_model.model.{PATH}")
    found, (warning,) = scales(tensors, {})
    assert found == [1.0]
    assert "adapter_config.json" in warning
    assert scales(tensors, {"lora_alpha": "8"}) == ([0.5], ())
    assert scales(pair(f"base_model.model.{PATH}", alpha=8), {}) == ([0.5], ())
