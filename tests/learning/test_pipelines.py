"""Learning with stock diffusers pipelines: denoiser and text encoders, and the command line."""

import json
from copy import deepcopy

import pytest
import torch

from merge_ops import ParameterError, learning, load, merge
from merge_ops.cli import main
from merge_ops.learning.measured import squared_errors
from merge_ops.models.hosts import DiffusersHost
from merge_ops.models.recorded import record_pipeline
from tests.models.conftest import sd15, sdxl  # noqa: F401  (fixtures)

SAMPLING = {"num_inference_steps": 4, "height": 32, "width": 32, "guidance_scale": 4.0}
UNET = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]


def adapter(pipe, path, seed):
    """A LoRA of stock PEFT for the UNet and the first text encoder, written by stock diffusers."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    torch.manual_seed(seed)
    layers = {}
    for name, targets in (("unet", UNET), ("text_encoder", ["q_proj", "v_proj"])):
        module = deepcopy(getattr(pipe, name))
        module.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets), adapter_name="x")
        for key, weight in module.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(weight, std=0.2)
        state = convert_state_dict_to_diffusers(get_peft_model_state_dict(module, adapter_name="x"))
        layers[f"{name}_lora_layers"] = {key: value.detach().clone() for key, value in state.items()}
    type(pipe).save_lora_weights(path, **layers, weight_name=f"{seed}.safetensors")
    return path / f"{seed}.safetensors"


@pytest.fixture(params=["sd15", "sdxl"])
def pipe(request):
    """Tiny pipelines of both architectures."""
    made = request.getfixturevalue(request.param)
    for part in (made.unet, made.text_encoder):
        part.requires_grad_(False)
    return made


@pytest.mark.slow
def test_pipeline(pipe, tmp_path):
    """Record denoiser and text encoder, distil both; the pipeline is as before, bit for bit."""
    loras = [load(adapter(pipe, tmp_path, seed)) for seed in (1, 2)]
    before = {
        name: value.clone()
        for part in (pipe.unet, pipe.text_encoder)
        for name, value in part.state_dict().items()
    }
    recording = record_pipeline(
        pipe, loras, ["a b c", ["d e", "f g"]], weights=[0.8, 0.7], text_encoders=True, sampling=SAMPLING
    )
    host = DiffusersHost(pipe, text_encoders=True)
    assert recording.keep_prompts == ("",) and recording.together_prompts == (
        "a b c, d e",
        "a b c, f g",
    )
    # four steps, each with and without the prompt, for one prompt and for two
    assert [
        len(recording.part("denoiser", role)) + len(recording.part("denoiser", role, True)) for role in (0, 1)
    ] == [8, 16]
    assert {sample.module for sample in recording.samples} == set(host.modules)
    for role, weight in enumerate((0.8, 0.7)):
        with host.applied(merge([loras[role]], [weight])), torch.no_grad():
            assert max(squared_errors(host, recording.part(role=role))) < 1e-5
    plain = learning.retention(recording, host, merge(loras, [0.8, 0.7]))
    distilled = learning.distill(recording, host, loras, steps=30, batch=8)
    kept = learning.retention(recording, host, distilled)
    assert kept.mean > plain.mean
    means = [sum(each.modules["text_encoder"].values()) / 2 for each in (plain, kept)]
    assert means[1] > means[0]
    trained = distilled.request.learned["best_step"]
    assert trained["denoiser"] > 0 and trained["text_encoder"] > 0
    after = {
        name: value for part in (pipe.unet, pipe.text_encoder) for name, value in part.state_dict().items()
    }
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_text_encoders_not_recorded_are_added_up(sd15, tmp_path):  # noqa: F811
    """Without calls of theirs, text encoders get the linear merge."""
    for part in (sd15.unet, sd15.text_encoder):
        part.requires_grad_(False)
    loras = [load(adapter(sd15, tmp_path, seed)) for seed in (1, 2)]
    recording = record_pipeline(sd15, loras, ["a", "b"], keep=(), together=(), sampling=SAMPLING)
    distilled = learning.distill(recording, DiffusersHost(sd15), loras, steps=2, batch=4)
    linear = merge(loras)
    text = [name for name in linear.layers if name.startswith("text_encoder")]
    assert len(text) == 4
    for name in text:
        assert torch.allclose(distilled.delta(name), linear.delta(name), atol=1e-6)
    changed = [
        name
        for name in linear.layers
        if not torch.allclose(distilled.delta(name), linear.delta(name), atol=1e-6)
    ]
    assert len(changed) == len(linear.layers) - len(text)


def test_prompts_are_checked(sd15, tmp_path):  # noqa: F811
    """One entry for each LoRA."""
    loras = [load(adapter(sd15, tmp_path, seed)) for seed in (1, 2)]
    with pytest.raises(ParameterError, match="2 LoRAs need 2 entries of prompts"):
        record_pipeline(sd15, loras, "one text")


@pytest.mark.slow
def test_command_line(sd15, tmp_path, capsys):  # noqa: F811
    """``measure`` writes the recording, ``distill`` reads it, and another ``measure`` judges the file."""
    files = [str(adapter(sd15, tmp_path, seed)) for seed in (1, 2)]
    sd15.save_pretrained(tmp_path / "model")
    shared = [*files, "--model", str(tmp_path / "model"), "--recording", str(tmp_path / "both.safetensors")]
    with pytest.raises(SystemExit):
        main(["measure", *files])
    assert main(["measure", *shared]) == 2
    assert "1 needs a prompt that shows what it does: give it as --prompt 1=..." in capsys.readouterr().err
    assert main(["measure", f"{files[0]}:0", files[1], *shared[2:], "--prompt", "x"]) == 1
    assert "1 is at weight 0, so there is nothing to record" in capsys.readouterr().err
    prompts = ["--prompt", "1=a = b | c", "--prompt", "2=d", "--sampling-steps", "3", "--size", "32"]
    assert main(["measure", *shared, *prompts, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert set(figures) == {"linear", "even", "ties", "calibrated"} and set(figures["linear"]["loras"]) == {
        "1",
        "2",
    }
    recording = learning.load_recording(tmp_path / "both.safetensors")
    assert [lora.prompts for lora in recording.loras] == [("a = b", "c"), ("d",)]
    out = tmp_path / "out.safetensors"
    assert main(["distill", *shared, "--steps", "15", "--rank", "3", "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert "distilled of 1 x 1 + 1 x 2" in text and "linear" in text and load(out).rank == 3
    assert (
        main(
            [
                "measure",
                *shared,
                "--method",
                "ties",
                "--density",
                "0.4",
                "--scales",
                "0.5,1",
                "--merged",
                str(out),
            ]
        )
        == 0
    )
    rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert rows[:1] == ["kept of"] and rows[2:5] == ["ties x 0.5", "ties x 1", "out.safetensors"]
    assert main(["measure", files[0], *shared[2:]]) == 1
    assert "2 is not among the LoRAs that were given" in capsys.readouterr().err
