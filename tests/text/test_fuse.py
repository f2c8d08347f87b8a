"""Base models with a merge in their weights: written shard by shard, loaded by stock transformers."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import merge_ops
from merge_ops import IncompatibleLoraError, LoraFormatError, MergeError, ParameterError
from merge_ops.models import fuse
from merge_ops.models.transformers import patched
from tests.text.models import ATTENTION, KINDS, MLP, logits, make_model, save_adapters

ROOT = Path(__file__).parents[2]
FUSED = {"llama": KINDS["llama"][1], "bert": KINDS["bert"][1]} | {
    "gpt2": [["c_attn", "c_proj", "c_fc", "wpe"], ["c_attn", "c_proj"], ["c_attn", "c_fc"]]  # wte is tied
}


def save_base(kind, folder, shard_size="20KB", **more):
    """The model as stock transformers saves it, in several shards, with files beside it."""
    model = make_model(kind).to(more.get("dtype", torch.float32))
    model.save_pretrained(folder, max_shard_size=shard_size)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("the base")
    (folder / "pytorch_model.bin").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def made(kind, tmp_path_factory):
    """A base folder and the folders of adapters for it."""
    place = tmp_path_factory.mktemp(f"fuse-{kind}")
    return save_base(kind, place / "base"), save_adapters(kind, FUSED[kind], place)


def loaded(kind, folder):
    return type(make_model(kind)).from_pretrained(folder).eval()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_is_what_peft_merges(kind, made, tmp_path):
    """``cat`` of three adapters: logits of PEFT's ``merge_and_unload``; shards, names and files as before."""
    base, adapters = made
    weights = [0.8, -0.5, 0.3]
    theirs = PeftModel.from_pretrained(loaded(kind, base), adapters["a"], adapter_name="a")
    for name in "bc":
        theirs.load_adapter(adapters[name], name)
    theirs.add_weighted_adapter(list("abc"), weights, "all", "cat")
    theirs.set_adapter("all")
    wanted = logits(theirs.merge_and_unload())
    merged = merge_ops.merge([merge_ops.load(adapters[name]) for name in "abc"], weights)
    seen = []
    report = fuse(base, merged, tmp_path / "out", progress=lambda *step: seen.append(step[:2]))
    found = logits(loaded(kind, tmp_path / "out"))
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))
    assert not torch.allclose(found, logits(loaded(kind, base)), atol=0.05)
    assert len(list(base.glob("*.safetensors"))) > 2
    assert set(names(tmp_path / "out")) == {*names(base), "lora_alloy.json"} - {
        "README.md",
        "pytorch_model.bin",
    }
    assert set(report.left_out) == {"README.md", "pytorch_model.bin"}
    for shard in base.glob("*.safetensors"):
        old, new = load_file(shard), load_file(tmp_path / "out" / shard.name)
        changed = {key for key in old if not torch.equal(old[key], new[key])}
        assert old.keys() == new.keys() and changed == report.fused.keys() & old.keys()
    assert set(report.fused.values()) == set(merged.layers) == {line.layer for line in report.changes}
    assert seen[0] == (0, report.tensors) and seen[-1] == (report.tensors, report.tensors)
    recipe = merge_ops.read_recipe(tmp_path / "out" / "lora_alloy.json")
    assert recipe.weights == weights


@pytest.mark.parametrize("combination_type", ["ties", "dare_ties_svd", "magnitude_prune"])
def test_every_merge_can_be_fused(made, kind, combination_type, tmp_path):
    """What ``patched`` gives at run time."""
    base, adapters = made
    loras = [merge_ops.load(adapters[name]) for name in "abc"]
    merged = merge_ops.merge(loras, combination_type=combination_type, density=0.5)
    fuse(base, merged, tmp_path / "out")
    model = loaded(kind, base)
    with patched(model, merged):
        wanted = logits(model)
    assert torch.allclose(logits(loaded(kind, tmp_path / "out")), wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(dtype, tmp_path, llama_adapters):
    """Sum in float32, rounded to the dtype of the base; the report says what that takes from the delta."""
    base = save_base("llama", tmp_path / "base", "1GB", dtype=dtype)
    merged = merge_ops.merge([merge_ops.load(llama_adapters["a"])], [0.5])
    report = fuse(base, merged, tmp_path / "out")
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    for line in report.changes:
        delta = merged.delta(line.layer)
        assert torch.equal(new[line.name], (old[line.name].float() + delta).to(dtype))
        rounded = float((new[line.name].double() - (old[line.name].double() + delta)).norm())
        assert line.rounding == pytest.approx(rounded, rel=1e-2) and 0 < line.rounding < 0.1 * line.delta
    assert "model.safetensors.index.json" not in names(tmp_path / "out")


def test_names_with_and_without_the_prefix(tmp_path, make_lora):
    """As GPT-2's files on the hub, which lack ``transformer.``, and as adapters of the inner model."""
    base = save_base("gpt2", tmp_path / "base", "1GB")
    tensors = load_file(base / "model.safetensors")
    short = {key.removeprefix("transformer."): value for key, value in tensors.items()}
    save_file(short, base / "model.safetensors", {"format": "pt"})
    inner, outer = "h.0.mlp.c_fc", "transformer.h.0.mlp.c_fc"
    for i, layer in enumerate((inner, outer)):
        merged = merge_ops.merge([make_lora(shapes={layer: (128, 32)})])
        fuse(base, merged, tmp_path / f"out{i}")
        new = load_file(tmp_path / f"out{i}" / "model.safetensors")
        assert torch.allclose(new[f"{inner}.weight"], short[f"{inner}.weight"] + merged.delta(layer).T)
    with pytest.raises(IncompatibleLoraError, match="one layer in two spellings"):
        merge_ops.merge([make_lora(shapes={inner: (128, 32), outer: (128, 32)})])
    llama = save_base("llama", tmp_path / "llama")
    names_ = ("layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj")
    both = merge_ops.merge([make_lora(shapes=dict.fromkeys(names_, (48, 32)))])
    with pytest.raises(IncompatibleLoraError, match="both match"):
        fuse(llama, both, tmp_path / "out")


@pytest.mark.parametrize(
    ("kind_", "shapes", "says"),
    [
        ("llama", {"model.layers.0.mlp.up": (48, 32)}, "no weight for the layer model.layers.0.mlp.up;"),
        ("llama", {"model.layers.0.mlp.up_proj": (32, 48)}, "has shape (32, 48)"),
        ("llama", {"x.y.model.layers.0.mlp.up_proj": (48, 32)}, "no weight for the layer x.y"),
        ("gpt2", {"transformer.wte": ("embedding", 32, 96, ())}, "embedding and output head"),
        ("gpt2", {"lm_head": (96, 32)}, "of its own, because it is tied"),
    ],
)
def test_layers_that_do_not_fit_are_named(kind_, shapes, says, tmp_path, make_lora):
    """Before anything is written."""
    base = save_base(kind_, tmp_path / "base")
    with pytest.raises(IncompatibleLoraError) as caught:
        fuse(base, merge_ops.merge([make_lora(shapes=shapes)]), tmp_path / "out")
    assert says in str(caught.value) and names(tmp_path) == ["base"]


def test_folders_that_are_refused(tmp_path, make_lora):
    """No folder, no weights, a missing or damaged shard, an index that leads out; and an existing target."""
    merged = merge_ops.merge([make_lora(shapes={"model.layers.0.mlp.up_proj": (48, 32)})])
    base = save_base("llama", tmp_path / "base")
    (tmp_path / "there").mkdir()
    for target, says in ((tmp_path / "there", "already exists"), (tmp_path / "no" / "out", "create it")):
        with pytest.raises(ParameterError, match=says):
            fuse(base, merged, target)
    index = base / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    shard = sorted(base.glob("*.safetensors"))[0]

    def refused(says):
        with pytest.raises(LoraFormatError, match=says):
            fuse(base, merged, tmp_path / "out")

    whole = shard.read_bytes()
    shard.write_bytes(whole[:-3])
    refused("download it again")
    shard.unlink()
    refused("lacks " + re.escape(shard.name))
    shard.write_bytes(whole)
    index.write_text(json.dumps({"weight_map": listed["weight_map"] | {"x": "../x.safetensors"}}))
    refused("which is not a safetensors file")
    index.unlink()
    refused("convert them")
    (base / "config.json").unlink()
    refused(r"no config\.json")
    shutil.rmtree(base)
    refused("no file or folder 'base'")
    assert names(tmp_path) == ["there"]


def test_a_failure_leaves_nothing(tmp_path, make_lora):
    """A result that float16 cannot hold, met in the middle of writing."""
    base = save_base("llama", tmp_path / "base", dtype=torch.float16)
    merged = merge_ops.merge([make_lora(shapes={"model.layers.1.mlp.down_proj": (32, 48)})], [1e6])
    with pytest.raises(MergeError, match="overflows F16"):
        fuse(base, merged, tmp_path / "out")
    assert names(tmp_path) == ["base"]


def run(*args, cwd):
    command = [sys.executable, "-m", "merge_ops", "fuse", *map(str, args)]
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.slow
def test_the_command(tmp_path):
    """As ``merge`` is told, with a dry run, JSON, and exit codes."""
    base = save_base("llama", tmp_path / "base")
    save_adapters("llama", [ATTENTION, MLP], tmp_path)
    given = ("base", "a:0.5", "b", "--method", "ties", "--density", "0.4")
    dry = run(*given, "--dry-run", cwd=tmp_path)
    assert dry.returncode == 0 and "14 of 21 tensors changed" in dry.stdout, dry.stderr
    assert "model.layers.1.mlp.up_proj.weight" in dry.stdout and not (tmp_path / "out").exists()
    done = run(*given, "-o", "out", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)["fused"]
    assert (told["path"], told["tensors"], len(told["fused"])) == ("out", 21, 14)
    loras = [merge_ops.load(tmp_path / name) for name in "ab"]
    model = loaded("llama", base)
    with patched(model, merge_ops.merge(loras, [0.5, 1.0], "ties", density=0.4)):
        assert torch.allclose(logits(loaded("llama", tmp_path / "out")), logits(model), atol=1e-5)
    again = run(*given, "-o", "out", cwd=tmp_path)
    assert again.returncode == 1 and "already exists" in again.stderr
    assert run(*given, cwd=tmp_path).returncode == 2
    assert run(*given, "-o", "x", "--rnak", "3", cwd=tmp_path).returncode == 2
    text = run("base", "a", "-o", "two", cwd=tmp_path)
    assert "read back and compared" in text.stdout and "not copied: README.md" in text.stdout
