"""Every suffix of every row is read into a record: a row that is complete on paper only fails here."""

from difflib import get_close_matches

import pytest
import torch

from merge_ops import LowRank, adapters
from merge_ops.formats import from_tensors
from merge_ops.lora import WholeWeight

# a file of each kind that is read: tensors by role, each a full set that needs no other
FILES = {
    "LoRA": [
        {"down": (2, 4), "up": (6, 2)},
        {"down": (2, 4), "up": (6, 2), "reshape": [6, 4]},
        {"down": (2, 4), "up": (6, 2), "mid": (2, 2, 3, 3)},
        {"embedding_down": (2, 4), "embedding_up": (6, 2)},
        {"down": (2, 4), "up": (6, 2), "singular": (2, 1), "ranknum": [2]},
    ],
    "LoHa": [
        {"hada_w1_a": (6, 2), "hada_w1_b": (2, 4), "hada_w2_a": (6, 2), "hada_w2_b": (2, 4)},
        {"hada_w1_a": (2, 6), "hada_w1_b": (2, 4), "hada_w2_a": (2, 6), "hada_w2_b": (2, 4)}
        | {"hada_t1": (2, 2, 3, 3), "hada_t2": (2, 2, 3, 3)},
    ],
    "LoKr": [
        {"lokr_w1": (3, 2), "lokr_w2": (2, 2)},
        {f"lokr_{name}": (2, 2) for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
        | {"lokr_t1": (2, 2, 3, 3), "lokr_t2": (2, 2, 3, 3)},
    ],
    "full difference": [{"diff": (6, 4)}, {"w_norm": (6,)}],
    "bias": [{"up_bias": (6,)}, {"diff_b": (6,)}, {"b_norm": (6,)}],
    "DoRA": [{"magnitude": (6, 1)}, {"peft_magnitude": (6,)}],
    "GLoRA": [{"a1": (4, 2), "a2": (2, 4), "b1": (6, 2), "b2": (2, 4), "bm": (2, 2, 3, 3)}],
    "(IA)3": [{"ia3": (6, 1), "on_input": [0]}],
    "OFT": [{"oft_blocks": (3, 2, 2), "rescale": (6, 1)}],
    "OFT of PEFT": [{"oft_R": (2, 1)}],
    "BOFT of PEFT": [{"boft_R": (1, 2, 2, 2), "boft_s": (6, 1)}],
    "replaced weight": [{"set": (6, 4)}],
    "module configuration": [{"config": b"{}"}],
}


# records of another row that a kind is read into
SHARED = {"full difference": (LowRank,), "bias": (LowRank,), "BOFT of PEFT": (adapters.InputRotation,)}
SHARED["module configuration"] = (WholeWeight,)


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        pytest.param(kind, suffix, id=f"{kind.name}{suffix}")
        for kind in adapters.KINDS
        if not kind.is_refused
        for suffix in kind.roles
    ],
)
def test_every_suffix_is_read(kind, suffix):
    """Into a record of the row, with nothing left over; a new row needs a file in ``FILES``."""
    role = kind.roles[suffix]
    shapes = next(file for file in FILES[kind.name] if role in file)
    suffixes = {role: suffix}
    for other in shapes.keys() - {role}:  # in the spelling that is most like it
        spellings = [each for each, meant in kind.roles.items() if meant == other]
        (suffixes[other],) = get_close_matches(suffix, spellings, n=1, cutoff=0)
    tensors = {f"unet.mid{suffixes[other]}": shape for other, shape in shapes.items()}
    if kind.wrap is not None:
        tensors |= {"unet.mid.lora_A.weight": (2, 4), "unet.mid.lora_B.weight": (6, 2)}
    made = {
        key: torch.tensor(list(shape), dtype=torch.uint8) if isinstance(shape, bytes)
        else torch.tensor(shape) if isinstance(shape, list) else torch.rand(shape)
        for key, shape in tensors.items()
    }  # fmt: skip
    if "singular" in shapes:  # AdaLoRA has no scale of its own without its configuration
        made["unet.mid.alpha"] = torch.tensor(2.0)
    lora = from_tensors("x", made)
    read = {**lora.layers, **lora.base_dependent, **lora.whole_weights}
    assert len(read) == 1 and not lora.unmerged
    (record,) = read.values()
    assert type(record) in (*kind.records, *SHARED.get(kind.name, ()))
