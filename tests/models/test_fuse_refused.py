"""What cannot be fused is refused before anything is written, and a failure leaves nothing behind."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import merge_ops
from merge_ops import IncompatibleLoraError, LoraFormatError, MergeError, ParameterError
from merge_ops.models import fuse
from tests.models.checkpoints import (
    CHANGED,
    FLUX_ORIGINAL,
    KOHYA,
    UNET,
    flux_blocks,
    lora_tensors,
    names,
    whole_checkpoint,
    write,
)

ROOT = Path(__file__).parents[2]


def test_other_files_are_refused(base, lora, tmp_path):
    """A GGUF file, a pickle, a cut file, a wrong suffix of the output, a target that exists."""
    merged = merge_ops.merge([lora])
    for name, content, says in (
        ("a.gguf", b"GGUF" + bytes(100), "GGUF"),
        ("a.ckpt", b"PK\x03\x04" + bytes(100), "pickle"),
        ("cut.safetensors", base.read_bytes()[:-2], "download it again"),
        ("model.bin", base.read_bytes(), "does not end in .safetensors"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LoraFormatError, match=says):
            fuse(tmp_path / name, merged, tmp_path / "out.safetensors")
        (tmp_path / name).unlink()
    with pytest.raises(LoraFormatError, match="no file or folder"):
        fuse(tmp_path / "missing.safetensors", merged, tmp_path / "out.safetensors")
    for target, says in (("out", "must end in .safetensors"), ("lora.safetensors", "already exists")):
        with pytest.raises(ParameterError, match=says):
            fuse(base, merged, tmp_path / target)
    assert names(tmp_path) == ["base.safetensors", "lora.safetensors"]


def test_a_lora_for_another_model_is_refused(base, lora, tmp_path):
    """None of its layers, most of another shape; one that is not there is named, and the rest is fused."""
    flux = merge_ops.load(
        write(
            tmp_path / "flux.safetensors",
            lora_tensors(FLUX_ORIGINAL | {"lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (8, 8)}),
        )
    )
    with pytest.raises(IncompatibleLoraError, match="is in base"):
        fuse(base, merge_ops.merge([flux]), tmp_path / "out.safetensors")
    wide = {stem: (shape[0], 2 * shape[1], *shape[2:]) for stem, shape in KOHYA.items()}
    other = merge_ops.load(write(tmp_path / "wide.safetensors", lora_tensors(wide)))
    with pytest.raises(IncompatibleLoraError, match="another base model"):
        fuse(base, merge_ops.merge([other]), tmp_path / "out.safetensors")
    more = KOHYA | {
        "lora_unet_down_blocks_3_resnets_0_conv1": (8, 8, 3, 3),
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q": (8, 8),
    }
    some = merge_ops.load(write(tmp_path / "more.safetensors", lora_tensors(more)))
    report = fuse(base, merge_ops.merge([some]), tmp_path / "out.safetensors")
    assert report.fused.keys() == CHANGED
    assert report.misfits == {
        "unet.down_blocks.3.resnets.0.conv1": "does not fit the model, which has no such layer",
        "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q": (
            "does not fit the model, which has no text encoder 3"
        ),
    }


def test_a_denoiser_by_itself_takes_no_text_layers(lora, tmp_path):
    """They are named, and the rest is fused."""
    unet = {
        key.removeprefix(UNET): tensor for key, tensor in whole_checkpoint().items() if key.startswith(UNET)
    }
    base = write(tmp_path / "unet.safetensors", unet)
    report = fuse(base, merge_ops.merge([lora]), tmp_path / "out.safetensors")
    assert {f"{UNET}{name}" for name in report.fused} == {name for name in CHANGED if name.startswith(UNET)}
    assert len(report.misfits) == 3 and all(
        "which has no text encoder" in why for why in report.misfits.values()
    )


def test_what_a_file_cannot_take(base, tmp_path):
    """A LoRA that widens a weight; (IA)3 that was merged without the model; one weight under two names."""
    wide = lora_tensors({"transformer.x_embedder": (8, 16)}) | {
        "transformer.x_embedder.lora_up.weight": torch.ones(8, 2)
    }
    flux = write(tmp_path / "flux.safetensors", {"img_in.weight": torch.ones(8, 8), **flux_blocks("comfyui")})
    both = {"diffusion_model.final_layer.adaLN_modulation.1": (16, 8), "transformer.norm_out.linear": (16, 8)}
    lora = merge_ops.load(write(tmp_path / "both.safetensors", lora_tensors(both)))
    with pytest.raises(IncompatibleLoraError, match="both match"):
        fuse(flux, merge_ops.merge([lora]), tmp_path / "out.safetensors")
    control = merge_ops.load(
        write(
            tmp_path / "control.safetensors",
            {**wide, "transformer.x_embedder.reshape_weight": torch.tensor([8, 16])},
        )
    )
    if any(layer.padded_to for layer in control.layers.values()):
        with pytest.raises(IncompatibleLoraError, match="control LoRAs"):
            fuse(flux, merge_ops.merge([control]), tmp_path / "out.safetensors")
    stem = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    ia3 = {f"{stem}.weight": torch.ones(8), f"{stem}.on_input": torch.tensor(False)}
    factors = merge_ops.load(write(tmp_path / "ia3.safetensors", ia3))
    with pytest.raises(ParameterError, match="base="):
        fuse(base, merge_ops.merge([factors]), tmp_path / "out.safetensors")
    assert fuse(base, merge_ops.merge([factors], base=base), tmp_path / "out.safetensors").changes


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_a_failure_leaves_nothing(dtype, tmp_path):
    """A result that the dtype cannot hold, met in the middle of writing; and a progress that ends it."""
    tensors = {f"blocks.{i}.self_attn.q.weight": torch.ones(8, 8).to(dtype) for i in range(4)}
    base = write(tmp_path / "base.safetensors", tensors)
    stems = {"diffusion_model.blocks.2.self_attn.q": (8, 8)}
    lora = merge_ops.load(write(tmp_path / "lora.safetensors", lora_tensors(stems)))
    with pytest.raises(MergeError, match="overflows F"):
        fuse(base, merge_ops.merge([lora], [1e7]), tmp_path / "out.safetensors")

    def stop(done, total, name):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fuse(base, merge_ops.merge([lora]), tmp_path / "out.safetensors", progress=stop)
    assert names(tmp_path) == ["base.safetensors", "lora.safetensors"]


_KILLED = """
import sys, time
import merge_ops
from merge_ops.models import fuse
def wait(done, total, name):
    if done == 5:
        print("half", flush=True)
        time.sleep(60)
fuse(sys.argv[1], merge_ops.merge([merge_ops.load(sys.argv[2])]), sys.argv[3], progress=wait)
"""


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


@pytest.mark.slow
def test_a_killed_process_leaves_no_file_of_that_name(base, lora, tmp_path):
    """What it may leave is a hidden folder, which no program takes for a model."""
    command = [sys.executable, "-c", _KILLED, str(base), str(lora.path), str(tmp_path / "out.safetensors")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert all(
        name.startswith(".out") and name.endswith(".part")
        for name in set(names(tmp_path)) - {"base.safetensors", "lora.safetensors"}
    )


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_threads(base, lora, tmp_path):
    """The command, with one thread and with several, on weights of several dtypes."""
    mixed = whole_checkpoint()
    kinds = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)
    for key, dtype in zip(sorted(CHANGED), kinds, strict=False):
        mixed[key] = mixed[key].to(dtype)
    base = write(tmp_path / "mixed.safetensors", mixed)
    digests = set()
    for threads in ("1", "2", "4"):
        out = tmp_path / f"out{threads}.safetensors"
        command = [
            sys.executable,
            "-m",
            "merge_ops",
            "fuse",
            str(base),
            f"{lora.path}:0.7",
            str(lora.path),
            "-o",
            str(out),
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=environment(OMP_NUM_THREADS=threads),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1
