"""What of the sources' metadata is in a merged file, and that hashes are those of the new file."""

import hashlib
import json
import struct

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import merge_ops

SHAPES = {"lora_unet_mid_block_attentions_0_proj_in": (24, 20), "lora_unet_conv_in": (16, 4, 3, 3)}


@pytest.fixture
def saved(write, kohya_tensors, tmp_path):
    """Saves the merge of files with the given metadata, and returns the path of the new file."""

    def make(*notes, form="kohya", shapes=SHAPES):
        names = [f"source{i}.safetensors" for i in range(len(notes))]
        loras = [
            merge_ops.load(write(kohya_tensors(shapes, (4,), 2.0, seed), note, name))
            for seed, (note, name) in enumerate(zip(notes, names, strict=True))
        ]
        target = tmp_path / ("merged" if form == "peft" else "merged.safetensors")
        merge_ops.save(merge_ops.merge(loras), target, format=form)
        return target / "adapter_model.safetensors" if form == "peft" else target

    return make


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def kohya_hashes(path):
    """As kohya's trainer makes them: of the file's tensors, written again with the ss_ keys only."""
    kept = {key: value for key, value in metadata_of(path).items() if key.startswith("ss_")}
    whole = safetensors.torch.save(safetensors.torch.load_file(path), kept)
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    legacy = hashlib.sha256(whole[0x100000:0x110000]).hexdigest()[:8]
    return hashlib.sha256(whole[start:]).hexdigest(), legacy


def test_facts_are_carried_where_those_that_say_them_agree(saved):
    """A source that does not say a thing does not contradict; one that says another thing does."""
    a = {"ss_base_model_version": "sd_v1", "modelspec.resolution": "512x512", "ss_clip_skip": "1"}
    b = {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"}
    metadata = metadata_of(saved(a, b | {"ss_clip_skip": "2"}))
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["modelspec.resolution"] == "512x512"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert "ss_clip_skip" not in metadata


def test_what_is_about_one_source_is_not_carried(saved):
    """Title, author, date, training settings and comments are of the source, not of the merge."""
    own = {
        "modelspec.title": "ink", "modelspec.author": "somebody", "modelspec.date": "2024-01-01",
        "ss_output_name": "ink", "ss_learning_rate": "0.1", "ss_network_dim": "77", "ss_network_alpha": "33",
        "ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "loha"}',
        "modelspec.thumbnail": "data:image/png;base64,AAAA",
    }  # fmt: skip
    metadata = metadata_of(saved(own, own))
    assert metadata["modelspec.title"] == metadata["ss_output_name"] == "merged"
    assert (metadata["ss_network_dim"], metadata["ss_network_module"]) == ("8", "networks.lora")
    assert metadata["ss_network_alpha"] == "8"
    absent = ("modelspec.author", "modelspec.date", "modelspec.thumbnail", "ss_learning_rate")
    assert not {*absent, "ss_network_args"} & metadata.keys()


def test_a_license_is_carried_only_if_every_source_has_it(saved):
    """Silence is not consent."""
    mit = {"modelspec.license": "MIT"}
    assert metadata_of(saved(mit, mit))["modelspec.license"] == "MIT"


@pytest.mark.parametrize("other", [{}, {"modelspec.license": "none"}])
def test_a_license_is_not_made_up(saved, other):
    """One source without it, or with another one, is enough."""
    assert "modelspec.license" not in metadata_of(saved({"modelspec.license": "MIT"}, other))


def test_trigger_words_are_united(saved):
    """Each word once, in the order of the LoRAs."""
    a = {"modelspec.trigger_phrase": "ink drawing, ohwx", "modelspec.tags": "style"}
    b = {"modelspec.trigger_phrase": " ohwx ,mia", "modelspec.tags": "style,person"}
    metadata = metadata_of(saved(a, b, {}))
    assert metadata["modelspec.trigger_phrase"] == "ink drawing, ohwx, mia"
    assert metadata["modelspec.tags"] == "style, person"


def test_words_have_a_cap(saved):
    """A hundred words, a thousand letters."""
    many = ", ".join(f"w{i}" for i in range(5000))
    metadata = metadata_of(saved({"modelspec.trigger_phrase": many}, {"modelspec.tags": "x" * 100_000}))
    assert len(metadata["modelspec.trigger_phrase"].split(", ")) == 100
    assert "modelspec.tags" not in metadata


def test_tags_of_the_training_images_are_united(saved):
    """Counts of one dataset add up, the most frequent come first, and a folder before the name is dropped."""
    a = {"/home/somebody/10_ink": {"ink": 10, "cat": 2}, "5_rest": {"dog": 5}}
    b = {"10_ink": {"cat": 20, "bad": "x", "worse": -1}}
    notes = [{"ss_tag_frequency": json.dumps(tags)} for tags in (a, b)]
    path = saved(*notes, {"ss_tag_frequency": "{broken"}, {"ss_tag_frequency": "[1]"})
    tags = json.loads(metadata_of(path)["ss_tag_frequency"])
    assert tags == {"10_ink": {"cat": 22, "ink": 10}, "5_rest": {"dog": 5}}
    assert list(tags["10_ink"]) == ["cat", "ink"]


def test_tags_have_a_cap(saved):
    """A hundred tags of 32 datasets."""
    tags = {f"set{i}": {f"tag{j}": j + 1 for j in range(300)} for i in range(100)}
    found = json.loads(metadata_of(saved({"ss_tag_frequency": json.dumps(tags)}))["ss_tag_frequency"])
    assert len(found) == 32
    assert found["set0"] == {f"tag{j}": j + 1 for j in range(200, 300)}


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("runwayml/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5"),
        ("model.safetensors", "model.safetensors"),
        ("/home/somebody/models/model.safetensors", "model.safetensors"),
        (r"C:\models\model.safetensors", "model.safetensors"),
    ],
)
def test_the_base_model_has_no_folder(saved, given, written):
    """Trainers may write a path of the machine they ran on."""
    path = saved({"ss_sd_model_name": given}, {"ss_sd_model_name": written})
    assert metadata_of(path)["ss_sd_model_name"] == written
    assert b"somebody" not in path.read_bytes()


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
def test_hashes_are_those_of_the_new_file(saved, form):
    """As kohya's trainer and ModelSpec define them; those of the sources are gone."""
    old = {"sshs_model_hash": "1", "sshs_legacy_hash": "2", "modelspec.hash_sha256": "0x3"}
    path = saved(old | {"ss_base_model_version": "sd_v1"}, old, form=form)
    metadata = metadata_of(path)
    data = path.read_bytes()
    expected = hashlib.sha256(data[8 + struct.unpack("<Q", data[:8])[0] :]).hexdigest()
    assert metadata["modelspec.hash_sha256"] == f"0x{expected}"
    if form == "kohya":
        assert (metadata["sshs_model_hash"], metadata["sshs_legacy_hash"]) == kohya_hashes(path)
        assert metadata["sshs_model_hash"] == expected
    else:
        assert not {"sshs_model_hash", "sshs_legacy_hash"} & metadata.keys()


@pytest.mark.parametrize("name", ["sd_v1", "ü €\n\"'\\/\x7f"])
def test_the_legacy_hash_of_a_file_of_more_than_a_megabyte(saved, name):
    """Where the old hash is of something; the length of the header counts, whatever is in it."""
    shapes = {f"lora_unet_mid_block_attentions_{i}_proj_in": (3000, 3100) for i in range(30)}
    path = saved({"ss_base_model_version": name}, shapes=shapes)
    assert path.stat().st_size > 0x110000
    metadata = metadata_of(path)
    assert (metadata["sshs_model_hash"], metadata["sshs_legacy_hash"]) == kohya_hashes(path)
    assert metadata["sshs_legacy_hash"] != hashlib.sha256().hexdigest()[:8]


def test_hashes_of_other_dtypes(saved, tmp_path, write, kohya_tensors):
    """Data of one file is ordered by dtype first, and alpha is always float32."""
    lora = merge_ops.load(write(kohya_tensors(SHAPES, (4,), 2.0, 0), None, "a.safetensors"))
    for dtype in (torch.bfloat16, torch.float32):
        path = tmp_path / f"{dtype}.safetensors"
        merge_ops.save(merge_ops.merge([lora]), path, dtype=dtype)
        assert metadata_of(path)["sshs_model_hash"] == kohya_hashes(path)[0]


FACTOR = "reference_downscale_factor"


@pytest.mark.parametrize("prefix", ["", "ss_", "modelspec.", "ltx.", "ic"])
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_what_a_lora_needs_to_be_used_is_carried(saved, prefix, form):
    """ComfyUI's Get IC-LoRA Parameters takes any key that ends so; a style LoRA beside it says nothing."""
    metadata = metadata_of(saved({prefix + FACTOR: "2"}, {"modelspec.title": "ink"}, form=form))
    assert metadata[prefix + FACTOR] == "2"


def test_numbers_agree_by_value_and_keys_by_their_end(saved):
    """One trainer writes 2 and another 2.0, with or without ss_."""
    metadata = metadata_of(saved({FACTOR: "2"}, {f"ss_{FACTOR}": "2.0", "reference_token_order": "prepend"}))
    assert (metadata[FACTOR], metadata[f"ss_{FACTOR}"]) == ("2", "2.0")
    assert metadata["reference_token_order"] == "prepend"


def test_contradicting_facts_are_left_out_and_said(write, kohya_tensors, tmp_path):
    """Also where they are spelled differently; the merge says so before anything is saved."""
    notes = {"a": {FACTOR: "2"}, "b": {f"ss_{FACTOR}": "1"}, "c": {}}
    loras = [
        merge_ops.load(write(kohya_tensors(SHAPES, (4,), 2.0), note, f"{name}.safetensors"))
        for name, note in notes.items()
    ]
    merged = merge_ops.merge(loras)
    (warning,) = merged.outline.warnings
    assert FACTOR in warning
    assert "'2' in a" in warning
    assert "'1' in b" in warning
    merge_ops.save(merged, tmp_path / "merged.safetensors")
    assert not [key for key in metadata_of(tmp_path / "merged.safetensors") if key.endswith(FACTOR)]
    assert not merge_ops.merge(loras[::2]).outline.warnings


def test_a_single_source_keeps_all_that_still_holds(saved):
    """Its training, author and picture are those of the resized file too; its layout and folders are not."""
    kept = {
        FACTOR: "2", "modelspec.author": "somebody",
        "modelspec.thumbnail": "data:image/png;base64,/9j/4AA/",
        "modelspec.description": "ink / pencil, see https://example.org/a/b", "ss_learning_rate": "0.1",
        "trigger_words": ",".join(f"w{i}" for i in range(500)),
        "ss_training_comment": "c", "training_info": '{"step": 5}', "unknown": "x",
        "modelspec.license": "MIT",
    }  # fmt: skip
    lost = {
        "sshs_model_hash": "1", "ss_network_module": "lycoris.kohya", "ss_network_dim": "77",
        "ss_network_args": '{"algo": "loha"}', "ss_train_data_dir": "/home/somebody/pictures",
        "ss_output_dir": "C:\\Users\\me", "notes": "see ~/secret/file", "modelspec.merged_from": "p",
    }  # fmt: skip
    metadata = metadata_of(saved(kept | lost))
    assert {key: metadata.get(key) for key in kept} == kept
    assert not [key for key, value in lost.items() if metadata.get(key) == value]
    assert metadata["ss_network_module"] == "networks.lora"


def test_unknown_facts_are_carried_where_they_agree(saved):
    """What no program is known to read may be what tomorrow's needs."""
    metadata = metadata_of(saved({"control": "canny", "who": "a"}, {"control": "canny", "who": "b"}, {}))
    assert metadata["control"] == "canny"
    assert "who" not in metadata
