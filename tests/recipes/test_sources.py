"""The sources of a recipe in folders: found by what is in them, then by name; files without a recipe."""

import os
import pickle
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from merge_ops import LoraFormatError, MergeError, ParameterError, Recipe
from merge_ops.recipes import Source


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_by_content_wherever_it_is_and_whatever_it_is_called(folder, pair, tmp_path):
    """A renamed file in a subfolder, and one in another folder; a false one has the name."""
    recipe = Recipe.of(merge_ops.merge(pair))
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "ink.safetensors").rename(folder / "deep" / "er" / "renamed.safetensors")
    shutil.copy(folder / "mia_peft" / "adapter_model.safetensors", folder / "ink.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    (folder / "mia.safetensors").rename(other / "mia.safetensors")
    found = merge_ops.find_sources(recipe, [folder, other])
    assert [lora.name for lora in found] == ["renamed", "mia"]
    assert [lora.sha256 for lora in found] == [lora.sha256 for lora in pair]
    assert not any(lora.warnings for lora in found)


def test_peft_folders(folder):
    """Weights and configuration together are the source; the folder itself may be given."""
    loras = [merge_ops.load(folder / f"{name}_peft") for name in ("ink", "mia")]
    recipe = Recipe.of(merge_ops.merge(loras))
    (folder / "ink_peft").rename(folder / "renamed")
    found = merge_ops.find_sources(recipe, [folder])
    assert [(lora.name, lora.dialect) for lora in found] == [("renamed", "peft"), ("mia_peft", "peft")]
    assert not any(lora.warnings for lora in found)
    inside = merge_ops.find_sources(Recipe((recipe.sources[1],)), [folder / "mia_peft"])
    assert inside[0].sha256 == loras[1].sha256


def test_files_of_that_name_are_hashed_first_and_no_more_than_needed(folder, pair):
    """And none at all where the recipe has no hash."""
    recipe, hashed = Recipe.of(merge_ops.merge(pair)), []

    def progress(_done, _total, name):
        hashed.append(name)

    merge_ops.find_sources(recipe, [folder], progress=progress)
    assert hashed == ["ink.safetensors", "mia.safetensors"]
    hashed.clear()
    (folder / "ink.safetensors").rename(folder / "a_first.safetensors")
    merge_ops.find_sources(recipe, [folder], progress=progress)
    assert hashed == ["mia.safetensors", "a_first.safetensors"]
    hashed.clear()
    merge_ops.find_sources(Recipe((Source("mia"),)), [folder], progress=progress)
    assert hashed == []


def test_by_name_with_a_warning(folder, pair):
    """It reaches the report of the merge."""
    recipe = Recipe.of(merge_ops.merge(pair))
    shutil.copy(folder / "mia.safetensors", folder / "ink.safetensors")
    ink, mia = merge_ops.find_sources(recipe, [folder])
    assert "not the file that the recipe was made from" in ink.warnings[0] and not mia.warnings
    assert "ink: found only by its name 'ink'" in recipe.run([ink, mia]).report.warnings[0]
    unknown = replace(recipe, sources=(Source("ink"), Source("loras/mia.safetensors")))
    assert all("no SHA-256" in lora.warnings[0] for lora in merge_ops.find_sources(unknown, [folder]))


def test_missing_ones_are_named_with_where_was_looked(folder, pair):
    """By the names of folders, not their paths."""
    recipe = Recipe.of(merge_ops.merge(pair))
    (folder / "mia.safetensors").unlink()
    with pytest.raises(ParameterError) as caught:
        merge_ops.find_sources(recipe, [folder])
    says = str(caught.value)
    assert "'mia'" in says and pair[1].sha256[:12] in says and "in loras" in says and "'ink'" not in says
    assert str(folder.parent) not in says
    with pytest.raises(ParameterError, match="no folder 'gone'"):
        merge_ops.find_sources(recipe, [folder / "gone"])
    with pytest.raises(ParameterError, match="no folder at all"):
        merge_ops.find_sources(recipe, [])


def test_a_name_of_several_files(folder):
    """Refused, unless they are copies or the name says the folder."""
    for name, source in (("a", "ink"), ("b", "mia")):
        (folder / name).mkdir()
        shutil.copy(folder / f"{source}.safetensors", folder / name / "twice.safetensors")
    recipe = Recipe((Source("twice"),))
    with pytest.raises(ParameterError, match=r"loras/a/twice.safetensors, loras/b/twice.safetensors"):
        merge_ops.find_sources(recipe, [folder])
    by_folder = merge_ops.find_sources(Recipe((Source("b/twice"),)), [folder])
    assert by_folder[0].sha256 == merge_ops.load(folder / "mia.safetensors").sha256
    shutil.copy(folder / "a" / "twice.safetensors", folder / "b" / "twice.safetensors")
    assert merge_ops.find_sources(recipe, [folder])


def test_one_file_as_two_sources(folder, pair, same):
    """With two weights."""
    merged = merge_ops.merge([pair[0], pair[0]], [0.5, 0.25])
    recipe = Recipe.of(merged)
    assert same(recipe.run(merge_ops.find_sources(recipe, [folder])), merged)


def test_links_that_lead_out_are_not_followed(folder, pair, tmp_path):
    """Neither of files nor of folders."""
    recipe = Recipe.of(merge_ops.merge(pair[:1]))
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "ink.safetensors").rename(outside / "ink.safetensors")
    (folder / "ink.safetensors").symlink_to(outside / "ink.safetensors")
    (folder / "linked").symlink_to(outside, target_is_directory=True)
    with pytest.raises(ParameterError, match="'ink'"):
        merge_ops.find_sources(recipe, [folder])
    (tmp_path / "root").symlink_to(outside, target_is_directory=True)
    assert merge_ops.find_sources(recipe, [tmp_path / "root"])  # this folder was asked for


def test_pickles_are_not_opened(folder, pair):
    """Whatever their names are."""
    recipe, trap = Recipe.of(merge_ops.merge(pair[:1])), folder / "opened"
    (folder / "ink.safetensors").unlink()
    code = pickle.dumps(Trap(str(trap)))
    for name in ("ink.pt", "ink.bin", "ink", "ink.safetensors"):
        (folder / name).write_bytes(code)
    with pytest.raises(LoraFormatError):  # the last one: found by its name, and it is a pickle
        merge_ops.find_sources(recipe, [folder])
    (folder / "ink.safetensors").unlink()
    with pytest.raises(ParameterError, match="'ink'"):
        merge_ops.find_sources(recipe, [folder])
    assert not trap.exists()


@pytest.mark.parametrize("kind", ["plain", "broken", "missing", "folder", "text"])
def test_files_without_a_recipe(kind, tmp_path, make_lora):
    """Each says what it is."""
    path = tmp_path / ("f.json" if kind == "text" else "f.safetensors")
    if kind == "plain":
        save_file({"a": torch.zeros(1)}, path)
    elif kind == "broken":
        path.write_bytes(b"\xff" * 100)
    elif kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(MergeError, match=r"^[^\n]*f\.(safetensors|json)"):
        merge_ops.read_recipe(path)


def test_names_that_are_typed_otherwise(folder):
    """Other spaces, another ending, the other slash and Unicode form; exactly that name comes first."""
    (folder / "sub").mkdir()
    for old, new in (("ink", "sub/café .safetensors"), ("mia", "ink .sft")):
        (folder / f"{old}.safetensors").rename(folder / new)
    for name, found in (
        ("cafe\u0301", "café "),
        ("sub\\café", "café "),
        ("café.safetensors", "café "),
        ("ink", "ink "),
    ):
        (lora,) = merge_ops.find_sources(Recipe((Source(name),)), [folder])
        assert lora.name == found, name
    shutil.copy(folder / "sub" / "café .safetensors", folder / "ink.safetensors")
    assert merge_ops.find_sources(Recipe((Source("ink"),)), [folder])[0].name == "ink"
    shutil.copy(folder / "ink .sft", folder / "ink.sft")
    with pytest.raises(ParameterError, match=r"several files are named 'ink': .*ink\.safetensors.*ink\.sft"):
        merge_ops.find_sources(Recipe((Source("ink"),)), [folder])
