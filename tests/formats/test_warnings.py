"""What is legal and often a mistake is said in warnings, which reach the report and the command line."""

import json

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from merge_ops import Lora
from merge_ops.cli import main

STEM = "lora_unet_mid_block_attentions_0_proj_in"
GOOD = {
    f"{STEM}.lora_up.weight": torch.ones(6, 2),
    f"{STEM}.lora_down.weight": torch.ones(2, 5),
    f"{STEM}.alpha": torch.tensor(1.0),
}
ADAPTER = {
    f"base_model.model.layers.0.{name}.lora_{half}.weight": torch.ones(4, 4) for name in "qv" for half in "AB"
}
LAYER = "unet.mid_block.attentions.0.proj_in"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, None),
        ({f"{STEM}.alpha": torch.tensor(0.0)}, f"alpha is 0 in 1 layer, such as {LAYER}"),
        ({f"{STEM}.alpha": torch.tensor(-2.0)}, f"alpha is negative in 1 layer, such as {LAYER}"),
        ({f"{STEM}.lora_up.weight": torch.zeros(6, 2)}, "no effect"),
        ({f"{STEM}.lora_up.weight": torch.zeros(6, 2).half()}, "no effect"),
        ({f"{STEM}.dora_scale": torch.ones(6, 1), f"{STEM}.alpha": torch.tensor(-2.0)}, "alpha is negative"),
        ({"lora_unet_conv_in.diff_b": torch.ones(2), f"{STEM}.lora_up.weight": torch.zeros(6, 2)}, None),
    ],
)
def test_odd_files(changed, message, write):
    """One sentence; none where all is well."""
    warnings = merge_ops.load(write(GOOD | changed)).warnings
    assert (message is None) == (not warnings), warnings
    assert message is None or message in warnings[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 4, "target_modules": ["q", "v"], "alpha_pattern": {"q": 1}}, None),
        ({"r": 4, "target_modules": r".*\.(q|v)", "rank_pattern": {"layers.0.v": 4}}, None),
        ({"target_modules": "all-linear"}, None),
        ({"r": 64}, "the configuration says rank 64 but the tensors of 2 layers, such as layers.0.q"),
        ({"alpha_pattern": {"q": 1, "k": 2}}, "alpha_pattern names 'k', which no module in the file matches"),
        ({"rank_pattern": {"layers.1.q": 2}}, "rank_pattern names 'layers.1.q'"),
        ({"target_modules": ["q", "v", *"abcde"]}, "target_modules names 'a', 'b', 'c' and 2 more"),
        ({"target_modules": ".*proj"}, "target_modules is '.*proj', which no module in the file matches"),
    ],
)
def test_configurations_that_contradict_the_tensors(config, message, tmp_path):
    """Of a PEFT folder, and of diffusers' metadata."""
    save_file(ADAPTER, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8} | config))
    flat = {f"unet.{name}": value for name, value in config.items()}
    tensors = {key.replace("base_model.model", "unet"): tensor for key, tensor in ADAPTER.items()}
    save_file(
        tensors,
        tmp_path / "x.safetensors",
        {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8} | flat)},
    )
    (tmp_path / "alone").mkdir()
    path = (tmp_path / "x.safetensors").rename(tmp_path / "alone" / "x.safetensors")
    for warnings in (merge_ops.load(tmp_path).warnings, merge_ops.load(path).warnings):
        assert (message is None) == (not warnings), warnings
        assert message is None or message in warnings[0]


def test_a_warning_reaches_report_and_command_line(write, capsys):
    """Named with its LoRA; with --strict it is an error, and nothing is written."""
    path = write(GOOD | {f"{STEM}.alpha": torch.tensor(0.0)})
    report = merge_ops.merge([merge_ops.load(path)]).report
    assert any(line.startswith("some: alpha is 0") for line in report.warnings), report.warnings
    out = path.with_name("out.safetensors")
    assert main(["merge", str(path), "-o", str(out), "--strict"]) == 1
    assert "alpha is 0" in capsys.readouterr().err
    assert not out.exists()
    assert main(["inspect", str(path)]) == 0
    assert "warning: alpha is 0" in capsys.readouterr().out
    assert main(["merge", str(path), "-o", str(out)]) == 0
    assert "warning: some: alpha is 0" in capsys.readouterr().out


def test_strict_refuses_what_would_be_left_out(write, capsys):
    """An entry that is not merged is an error too."""
    path = write(GOOD | {"stray": torch.ones(1)})
    assert main(["merge", str(path), "-o", str(path.with_name("out.safetensors")), "--strict"]) == 1
    assert "stray" in capsys.readouterr().err


def test_strict_refuses_a_lora_of_which_a_part_is_not_in_the_base_model(make_lora, tmp_path, capsys):
    """Without it the layers that the base has not are counted in a warning."""
    lora = make_lora("ink", shapes={"unet.a.to_q": (6, 5), "unet.b.to_q": (6, 5)})
    merge_ops.save(merge_ops.merge([lora]), tmp_path / "ink.safetensors", format="kohya")
    save_file({"unet.a.to_q.weight": torch.ones(6, 5)}, tmp_path / "base.safetensors")
    command = ["merge", str(tmp_path / "ink.safetensors"), "--base", str(tmp_path / "base.safetensors")]
    assert main([*command, "-o", str(tmp_path / "out.safetensors"), "--strict"]) == 1
    assert "1 of 2 layers" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "out.safetensors")]) == 0
    assert "1 of 2 layers" in capsys.readouterr().out


def test_a_dora_beside_a_plain_lora(write):
    """No order of loading gives what a merge of both does."""
    dora = merge_ops.load(write(GOOD | {f"{STEM}.dora_scale": torch.ones(6, 1)}))
    plain = Lora("plain", merge_ops.load(write(GOOD)).layers)
    merged = merge_ops.merge([dora, plain], base=lambda name: torch.ones(6, 5))
    assert any("is a DoRA and plain is not" in line for line in merged.report.warnings)
    assert not merge_ops.merge([plain, plain]).report.warnings
