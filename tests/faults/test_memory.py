"""Small files whose factors multiply to large ones: nothing is multiplied out when a file is read."""

import pytest
import torch
from safetensors.torch import save_file

MB = 1 << 20
STEM = "lora_unet_conv_in"
WIDE = 40_000
SMALL = {
    "LoKr of two factors": {
        "lokr_w1": torch.ones(1, 1),
        "lokr_w2_a": torch.ones(WIDE, 1),
        "lokr_w2_b": torch.ones(1, WIDE),
    },
    "Tucker core": {
        "lora_up.weight": torch.ones(2, 1, 1, 1),
        "lora_down.weight": torch.ones(1, WIDE, 1, 1),
        "lora_mid.weight": torch.ones(1, 1, 200, 200),
    },
    "Tucker core of LoHa": {
        **{f"hada_w{i}_a": torch.ones(1, 2) for i in (1, 2)},
        **{f"hada_w{i}_b": torch.ones(1, WIDE) for i in (1, 2)},
        **{f"hada_t{i}": torch.ones(1, 1, 200, 200) for i in (1, 2)},
    },
    "GLoRA with a core": {
        "a1.weight": torch.ones(4, 1),
        "a2.weight": torch.ones(1, 4),
        "b1.weight": torch.ones(4, 1),
        "b2.weight": torch.ones(1, WIDE),
        "bm.weight": torch.ones(1, 1, 200, 200),
    },
    "widened": {
        "lora_up.weight": torch.ones(4, 1),
        "lora_down.weight": torch.ones(1, 4),
        "reshape_weight": torch.tensor([2**20, 2**20]),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_small_factors_are_not_multiplied_out(kind, tmp_path, peaks_of):
    """Loading takes less than ten times the file."""
    path = tmp_path / "x.safetensors"
    save_file({f"{STEM}.{end}": tensor for end, tensor in SMALL[kind].items()}, path)
    ((peak, said),) = peaks_of(path)
    assert peak < 10 * path.stat().st_size + 24 * MB, (peak // MB, said)
    assert said == "1" if kind.startswith("LoKr") else "x.safetensors: " in said
