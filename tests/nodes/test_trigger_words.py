"""Trigger words from the training tags, and base models from what is stated."""

import json

import pytest

from merge_ops.names.architectures import BY_NAME
from merge_ops.names.recognise import Guess
from tests.nodes.pack import pack_module

trigger_words = pack_module("merge_ops.notes.trigger_words")
base_models = pack_module("nodes.values.base_models")
TAGS = {"10_mia": {"mia": 20, "1girl": 20, "red scarf": 12, "smile": 5}}


def metadata(tags=None, dirs=None, **more):
    """What kohya's trainers write: JSON inside of texts."""
    given = {"ss_tag_frequency": tags, "ss_dataset_dirs": dirs, "ss_datasets": more.get("datasets")}
    return {key: json.dumps(value) for key, value in given.items() if value is not None}


def triggers(noted):
    """The words that are trusted."""
    return trigger_words.triggers_among(trigger_words.read_tags(noted), noted)


def test_a_tag_of_all_images_is_a_trigger():
    """One that people give to any picture is none, and neither is a rare one."""
    noted = metadata(TAGS, {"10_mia": {"n_repeats": 10, "img_count": 20}})
    assert trigger_words.read_tags(noted)[2] == trigger_words.Tag("red scarf", 12, 0.6)
    assert triggers(noted) == ["mia"]


def test_without_the_number_of_images_no_tag_is_trusted():
    """Or where one folder's is missing."""
    assert triggers(metadata(TAGS)) == []
    both = TAGS | {"5_other": {"mia": 5}}
    assert triggers(metadata(both, {"10_mia": {"img_count": 20}})) == []
    assert trigger_words.read_tags(metadata(both))[0] == trigger_words.Tag("mia", 25, None)


def test_several_folders_are_added():
    """A tag of one folder covers a part of the images."""
    noted = metadata(
        TAGS | {"5_tom": {"tom": 20, "film": 20}}, {"10_mia": {"img_count": 20}, "5_tom": {"img_count": 20}}
    )
    assert triggers(noted) == []
    assert trigger_words.read_tags(noted)[0].share == 0.5


def test_newer_trainers():
    """Tags and images by data set."""
    subsets = [{"image_dir": "10_mia", "img_count": 20}]
    assert triggers(metadata(datasets=[{"tag_frequency": TAGS, "subsets": subsets}])) == ["mia"]


def test_ai_toolkit():
    """It notes its trigger word as the one tag of one image."""
    assert triggers(metadata({"1_mia": {"mia": 1}})) == ["mia"]
    assert triggers(metadata({"1_set": {"mia": 1}})) == []


def test_many_tags_of_all_images_are_no_triggers():
    """They describe what the images have in common."""
    tags = {"a": {f"tag {i}": 10 for i in range(5)}}
    assert triggers(metadata(tags, {"a": {"img_count": 10}})) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        '{"a": 7}',
        '{"a": {"b": "c", "d": -1, "e": 1e99, "": 4, "f": true}}',
        "[" * 99999,
        '{"a": {"x": 123456789012345678901234567890}}',
    ],
)
def test_broken_tags(text):
    """Are no tags."""
    noted = {"ss_tag_frequency": text, "ss_dataset_dirs": text, "ss_datasets": text}
    assert trigger_words.read_tags(noted) == [] and triggers(noted) == []


def test_joined():
    """In order, each once, whatever its case."""
    assert (
        trigger_words.join_words([["Mia", "red scarf"], [], ["mia", "oil painting"]])
        == "Mia, red scarf, oil painting"
    )


@pytest.mark.parametrize(
    ("model", "others", "width", "trusted", "stated", "label"),
    [
        ("sdxl", (), 0, [], ["sdxl_base_v1-0", "ponyDiffusionV6XL_v6.safetensors"], "Pony"),
        ("sdxl", (), 0, ["SDXL 1.0"], ["sdxl_base_v1-0", "ponyDiffusionV6XL_v6.safetensors"], "SDXL"),
        ("sdxl", (), 0, ["Illustrious"], ["sdxl_base_v1-0"], "Illustrious"),
        ("sdxl", (), 0, ["NoobAI"], [], "NoobAI"),
        ("sdxl", (), 0, ["Unknown"], ["stable-diffusion-xl-v1-base/lora"], "SDXL"),
        ("sd1", (), 0, ["SDXL 1.0"], ["sdxl_base_v1-0"], "SD 1.5"),
        ("sd1", (), 0, [], ["/models/pony.safetensors"], "SD 1.5"),
        ("flux", (), 0, ["Flux.1 D"], ["flux1"], "Flux.1"),
        ("flux", (), 0, [], ["chroma"], "Chroma"),
        ("flux2", (), 0, [], ["flux2_klein_9b"], "Flux.2"),
        ("flux", ("qwen",), 0, [], [], None),
        ("flux", ("qwen",), 0, [], ["qwen_image"], "Qwen-Image"),
        ("flux", ("qwen",), 0, ["SDXL 1.0"], [], None),
        ("wan", (), 5120, [], [], "Wan"),
        ("wan", (), 1536, [], [], "Wan 2.1"),
        ("wan", (), 5120, ["Wan Video 2.2 I2V-A14B"], [], "Wan 2.2"),
        ("wan", (), 5120, ["Wan Video 14B t2v"], [], "Wan 2.1"),
        ("zimage", (), 0, ["ZImageTurbo"], [], "Z-Image"),
        ("auraflow", (), 0, ["Pony V7"], [], "Pony V7"),
        (None, (), 0, [], ["sd_v1", "model.ckpt"], "SD 1.5"),
        (None, (), 0, ["Anima"], [], "Anima"),
        (None, (), 0, ["Other"], ["Qwen/Qwen2.5-0.5B"], None),
        (None, (), 0, [], ["stabilityai/stable-diffusion-xl-base-1.0"], "SDXL"),
        (None, (), 0, [], [], None),
    ],
)
def test_base_models(model, others, width, trusted, stated, label):
    """The layers decide, what is stated refines, and nothing is guessed."""
    rows = [BY_NAME[name] for name in others]
    guess = None if model is None else Guess(BY_NAME[model], "original", tuple(rows))
    assert base_models.name_base(guess, width, trusted, stated) == label
