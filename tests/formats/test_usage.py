"""Trigger words and notes of the sources in the metadata of a merge, from the files and from beside them."""

import json

import pytest
from safetensors import safe_open

import merge_ops
from merge_ops import ParameterError
from merge_ops.cli import main

LAYER = {"unet.mid_block.attentions.0.proj_in": (12, 8)}
PHRASE, HINT = "modelspec.trigger_phrase", "modelspec.usage_hint"


@pytest.fixture
def write(tmp_path, make_lora, monkeypatch):
    """Write a LoRA with metadata, and what lies beside it."""
    monkeypatch.chdir(tmp_path)

    def make(name, metadata=None, **beside):
        lora = make_lora(name, shapes=LAYER, seed=len(name))
        merge_ops.save(merge_ops.merge([lora]), f"{name}.safetensors", metadata=metadata)
        for ending, content in beside.items():
            path = tmp_path / f"{name}.{ending.replace('_', '.')}"
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return f"{name}.safetensors"

    return make


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def merged(*paths):
    assert main(["merge", *paths, "-o", "out.safetensors", "--overwrite"]) == 0
    return metadata_of("out.safetensors")


def test_words_and_notes_of_all(write):
    """Those of Civitai's, LoRA Manager's and A1111's files and of the metadata, in order and each once."""
    paths = [
        write("ink", {PHRASE: "ink drawing, Mia"}),
        write("mia", civitai_info={"trainedWords": ["mia", "red scarf"]}),
        write("fox", metadata_json={"civitai": {"trainedWords": ["fox"]}, "notes": "best at 0.7"}),
        write(
            "boat", {HINT: "put it first\nin the prompt"}, json={"activation text": "boat", "notes": "mine"}
        ),
        write("bare"),
    ]
    found = merged(*paths)
    assert found[PHRASE] == "ink drawing, Mia, red scarf, fox, boat"
    assert found[HINT] == "fox: best at 0.7\nboat: put it first\nin the prompt"
    again = merged("out.safetensors", paths[-1])
    assert again[PHRASE] == found[PHRASE] and again[HINT] == f"out: {found[HINT]}"
    assert PHRASE not in merged(paths[-1], paths[-1]) and HINT not in metadata_of("out.safetensors")


def test_one_source(write):
    """A resized file keeps what its source states, and gets what stands only beside it."""
    stated = write(
        "ink", {PHRASE: " ink ,drawing", HINT: "at 0.8"}, json={"notes": "n", "activation text": "Ink"}
    )
    noted = write("mia", json={"notes": "for portraits", "activation text": "mia, scarf"})
    for path, words, hint in ((stated, " ink ,drawing", "at 0.8"), (noted, "mia, scarf", "for portraits")):
        assert main(["resize", path, "--rank", "2", "-o", "out.safetensors", "--overwrite"]) == 0
        assert (metadata_of("out.safetensors")[PHRASE], metadata_of("out.safetensors")[HINT]) == (words, hint)


def test_words_of_the_training_images(write):
    """A tag of nearly all images is a trigger word; what most pictures show is none."""
    tags = {"ss_tag_frequency": json.dumps({"10_x": {"ohwx": 10, "1girl": 10, "hat": 3}}),
            "ss_dataset_dirs": json.dumps({"10_x": {"n_repeats": 1, "img_count": 10}})}  # fmt: skip
    assert merged(write("ink", tags), write("mia"))[PHRASE] == "ohwx"


def test_what_is_kept_out(write, tmp_path):
    """Folders of a machine, notes without end, files that are broken, and links to other places."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.json").write_text(
        json.dumps({"notes": "secret", "activation text": "s"})
    )
    paths = [
        write("path", json={"notes": "see /home/somebody/notes", "activation text": "fine, ~/x/y"}),
        write("long", json={"notes": "x" * 5000, "activation text": ", ".join(f"w{i}" for i in range(900))}),
        write("broken", json="{", civitai_info="[1]", metadata_json={"notes": 5, "civitai": []}),
        write("linked"),
    ]
    (tmp_path / "linked.json").symlink_to("elsewhere/secret.json")
    found = merged(*paths)
    assert found[HINT] == f"long: {'x' * 499}…"
    words = found[PHRASE].split(", ")
    assert words[:2] == ["fine", "w0"] and len(words) < 101 and "s" not in words


def test_metadata_of_the_caller(write, tmp_path, make_lora):
    """It replaces what is carried; what only saving can know is refused, before anything is written."""
    source = merge_ops.load(write("ink", {PHRASE: "ink", "modelspec.description": "old"}))
    one = merge_ops.merge([source])
    stated = {"modelspec.description": "new", "modelspec.thumbnail": "data:image/png;base64,AAAA"}
    rule = merge_ops.RankRule(energy=0.9)
    for form in ("kohya", "diffusers"):
        path = tmp_path / f"{form}.safetensors"
        merge_ops.save(one, path, rule, form, metadata=stated)
        assert metadata_of(path).items() >= {**stated, PHRASE: "ink"}.items()
    for wrong in ({"lora_alloy": "{}"}, {"ss_network_dim": "4"}, {"modelspec.hash_sha256": "0x0"}, {"x": 5}):
        with pytest.raises(ParameterError, match=next(iter(wrong))):
            merge_ops.save(one, tmp_path / "x.safetensors", metadata=wrong)
    assert not (tmp_path / "x.safetensors").exists()
