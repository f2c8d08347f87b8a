"""No pattern and no list of names in a file can make it slow to read or to save."""

import json
import re
import time

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from merge_ops import LoraFormatError
from merge_ops.patterns import ByPattern
from merge_ops.saving.metadata import _rank_config as rank_config

HOSTILE = {
    "optional letters": ".?" * 40 + "!",
    "choices that overlap": "(a|aa)" * 26 + "!",
    "a repeat of a repeat": "(a+)+!",
    "a choice repeated": "(a|a)*!",
    "many stars": ".*" * 30 + "!",
    "counted groups": "((a{1,9}){9}){9}!",
    "looks": "(?=.*(?!.*(?=.*a.*b).*c).*d)" * 8 + "!",
    "a look behind": "(?<=aaa)" * 50 + "!",
    "word ends": r"(\b|\B|a)*" * 9 + "!",
    "empty repeats": "(((a*)*)*)*!",
}
LONG = "a" * 60


def folder_with(path, config, kind="LORA", **tensors):
    path.mkdir(exist_ok=True)
    ends = (
        {"lora_A.weight": torch.ones(2, 4), "lora_B.weight": torch.ones(4, 2)} if kind == "LORA" else tensors
    )
    save_file(
        {f"base_model.model.{LONG}.{end}": t for end, t in ends.items()}, path / "adapter_model.safetensors"
    )
    (path / "adapter_config.json").write_text(
        json.dumps({"peft_type": kind, "r": 2, "lora_alpha": 2} | config)
    )
    return path


def loaded_in(path, limit):
    """Load what may be refused, in a processor time of this process."""
    start = time.process_time()
    try:
        merge_ops.load(path)
    except LoraFormatError as error:
        assert "pattern" in str(error)
    assert time.process_time() - start < limit


@pytest.mark.parametrize("what", sorted(HOSTILE))
def test_patterns_that_would_never_end(what, tmp_path):
    """Python's engine is busy with each of them for years, and holds all of ComfyUI meanwhile."""
    pattern = HOSTILE[what]
    for option in ("alpha_pattern", "rank_pattern"):
        meta = {"unet.r": 2, "unet.lora_alpha": 2, f"unet.{option}": {pattern: 4}}
        file = tmp_path / f"{option}.safetensors"
        tensors = {
            f"unet.{LONG}.lora_A.weight": torch.ones(2, 4),
            f"unet.{LONG}.lora_B.weight": torch.ones(4, 2),
        }
        save_file(tensors, file, {"lora_adapter_metadata": json.dumps(meta)})
        loaded_in(file, 5)
        loaded_in(folder_with(tmp_path / "lora", {option: {pattern: 4}}), 5)
    for option in ("target_modules", "exclude_modules", "layers_pattern"):
        loaded_in(folder_with(tmp_path / "lora", {option: pattern}), 5)
    for option in ("target_modules", "target_parameters", "modules_to_save", "layers_pattern"):
        loaded_in(folder_with(tmp_path / "lora", {option: [pattern]}), 5)
    ia3 = {"feedforward_modules": pattern, "target_modules": pattern}
    loaded_in(folder_with(tmp_path / "ia3", ia3, "IA3", ia3_l=torch.ones(4, 4)), 5)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(.)(.)\2x",
        "(?i)q",
        "(?P<a>q)(?P=a)",
        "(?>q)",
        "q++",
        "(q)?(?(1)a|b)",
        "(",
        "q**",
        "[b-a]",
        "a" + "\\",
    ],
)
def test_patterns_that_are_refused(pattern, tmp_path):
    """PEFT matches some of them; the message shows the pattern and the way out."""
    for option in ("alpha_pattern", "rank_pattern"):
        with pytest.raises(LoraFormatError) as caught:
            merge_ops.load(folder_with(tmp_path / "lora", {option: {pattern: 4}}))
        assert str(caught.value).startswith("lora")
        assert repr(pattern) in str(caught.value)
        assert "write the names out" in str(caught.value)
    with pytest.raises(LoraFormatError, match="write the names out"):
        folder = folder_with(
            tmp_path / "ia3", {"feedforward_modules": pattern}, "IA3", ia3_l=torch.ones(4, 4)
        )
        merge_ops.load(folder)


def test_a_target_pattern_that_is_not_matched(tmp_path):
    """It says what was trained and not what the tensors mean, so it is named and the file is read."""
    lora = merge_ops.load(folder_with(tmp_path / "lora", {"target_modules": "(?i)Q"}))
    assert any("target_modules was not compared" in line and "(?i)Q" in line for line in lora.warnings)


def test_a_large_pattern_is_refused_by_its_size(tmp_path):
    """Small texts that stand for large ones, and patterns that no file could be searched for."""
    for pattern in ("((a{99}){99}){99}", "a{4000000000}", "(((((()*)*)*)*)*){999999}", "(" * 100 + ")" * 100):
        loaded_in(folder_with(tmp_path / "lora", {"alpha_pattern": {pattern: 1}}), 5)
    many = {f".*(a|b{i}).*(a|c{i}).*": 1 for i in range(3000)}
    loaded_in(folder_with(tmp_path / "lora", {"alpha_pattern": many}), 20)


WAYS = {
    "names": str, "escaped": re.escape, "whole": lambda name: f"^{name}", "ended": lambda name: f"^{name}$",
    "behind a dot": lambda name: rf".*\.{name.partition('.')[2]}", "anywhere": lambda name: f".*{name}",
}  # fmt: skip


def module_names(count):
    parts = [f"attn{i}.to_{to}" for i in (1, 2) for to in "qkvo"] + ["ff.net.0.proj", "ff.net.2"]
    blocks = range(-(-count // len(parts)))
    return [f"blocks.{i // 10}.transformer.{i % 10}.{part}" for i in blocks for part in parts][:count]


@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_pattern_for_each_module_takes_linear_time(way):
    """In processor time: 300 times what the smallest machine needs for plain names would still pass."""
    for count, limit in ((722, 1.0), (10_000, 8.0)):
        names = module_names(count)
        start = time.process_time()
        table = ByPattern({WAYS[way](name): i for i, name in enumerate(names)})
        assert [table.of(f"{name}", -1) for name in names] == list(range(count))
        assert time.process_time() - start < limit


def test_files_with_a_pattern_for_each_module_load_and_save(tmp_path):
    """Ours are such files wherever ranks differ: 722 modules took 45 s to load and 36 s to save."""
    names = module_names(722)
    layers = {
        f"unet.{name}": merge_ops.LowRank(torch.ones(4, 1 + i % 3), torch.ones(1 + i % 3, 4), 1 + i % 2)
        for i, name in enumerate(names)
    }
    start = time.process_time()
    merge_ops.save(merge_ops.merge([merge_ops.Lora("x", layers)]), tmp_path / "peft", format="peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert len(config["rank_pattern"]) > 200
    lora = merge_ops.load(tmp_path / "peft")
    assert time.process_time() - start < 10
    assert [layer.rank for layer in lora.layers.values()] == [
        layers[name if name in layers else f"unet.{name}"].rank for name in lora.layers
    ]
    tensors = {f"unet.{n}.lora_A.weight": torch.ones(2, 4) for n in names}
    tensors |= {f"unet.{n}.lora_B.weight": torch.ones(4, 2) for n in names}
    meta = {
        "unet.r": 2,
        "unet.lora_alpha": 2,
        "unet.alpha_pattern": {n: 3 + i % 2 for i, n in enumerate(names)},
    }
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(meta)})
    start = time.process_time()
    scales = {name: layer.scale for name, layer in merge_ops.load(tmp_path / "x.safetensors").layers.items()}
    assert time.process_time() - start < 3
    assert scales == {f"unet.{name}": (3 + i % 2) / 2 for i, name in enumerate(names)}


def test_ten_thousand_ranks_are_written_in_linear_time():
    names = module_names(10_000)
    layers = {
        n: merge_ops.LowRank(torch.ones(4, 1 + i % 3), torch.ones(1 + i % 3, 4)) for i, n in enumerate(names)
    }
    start = time.process_time()
    config = rank_config(layers)
    assert time.process_time() - start < 5
    assert len(config["rank_pattern"]) > 6000


def test_long_lists_of_names_are_compared_in_linear_time(tmp_path):
    """Each module of (IA)3 as a feed-forward module, as our own folders list them."""
    names = module_names(3000)
    tensors = {f"base_model.model.{n}.ia3_l": torch.ones(1, 4) for n in names}
    config = {
        "feedforward_modules": names,
        "modules_to_save": [f"{n}x" for n in names],
        "target_modules": names,
    }
    path = tmp_path / "ia3"
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"} | config))
    start = time.process_time()
    lora = merge_ops.load(path)
    assert time.process_time() - start < 5
    assert all(adapter.by_input for adapter in lora.base_dependent.values())
