"""Names to save under: what some system cannot hold is refused in one sentence, and nothing is computed."""

import pytest
import torch

import merge_ops
from merge_ops import Lora, LowRank, ParameterError

LORA = Lora("a", {"unet.conv_in": LowRank(torch.ones(3, 2), torch.ones(2, 4))})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\0b.safetensors", "cannot be printed"),
        ("two\nlines.safetensors", "cannot be printed"),
        ("\u202etxet.safetensors", "cannot be printed"),
        ("con.safetensors", "reserved by Windows"),
        ("LPT1.x.safetensors", "reserved by Windows"),
        ("NUL .safetensors", "reserved by Windows"),
        ("x" * 244 + ".safetensors", "is 256 bytes long, but at most 255 fit"),
        ("\u00e4" * 200 + ".safetensors", "is 412 bytes long"),
    ],
)
def test_names_that_cannot_be_saved(name, message, tmp_path):
    """The message is one line, and the folder stays empty."""
    with pytest.raises(ParameterError, match=message) as caught:
        merge_ops.save(merge_ops.merge([LORA]), tmp_path / name)
    assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["aux", "trailing.", "trailing ", "a\0b"])
def test_folders_that_cannot_be_saved(name, tmp_path):
    """Of the PEFT format."""
    with pytest.raises(ParameterError, match="the name "):
        merge_ops.save(merge_ops.merge([LORA]), tmp_path / name, format="peft")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["console.safetensors", "x" * 243 + ".safetensors", "\u732b %date%.safetensors"]
)
def test_names_that_only_look_like_it(name, tmp_path):
    """They are saved as they are: tokens mean nothing here."""
    merge_ops.save(merge_ops.merge([LORA]), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("parent", ["a\0b", "missing", "x" * 300])
def test_folders_that_are_not_there(parent, tmp_path):
    """A folder is not made for a file."""
    with pytest.raises(ParameterError, match="does not exist"):
        merge_ops.save(merge_ops.merge([LORA]), tmp_path / parent / "x.safetensors")
