"""Print the SHA-256 of a saved file for each way of merging, on a number of threads given as argument."""

import hashlib
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import merge_ops
from tests.laws import merge

WEIGHTS = [0.7, -0.4, 1.3]
SHAPES = {"attentions.0.proj_in": (640, 2560), "attentions.1.proj_in": (768, 1101)}
OFT = "lora_unet_mid_block_attentions_0_proj_in"
COMBINATIONS = ("svd", "ties_svd", "dare_linear_svd", "magnitude_prune", "ties")


def lora(name, seed, ranks):
    """Layers large enough for work to be shared out among threads."""
    generator = torch.Generator().manual_seed(seed)
    layers = {
        f"unet.mid_block.{layer}": merge_ops.LowRank(
            torch.randn(rows, rank, generator=generator) / 10, torch.randn(rank, columns, generator=generator)
        )
        for (layer, (rows, columns)), rank in zip(SHAPES.items(), ranks, strict=True)
    }
    return merge_ops.Lora(name, layers)


def oft(folder):
    """A rotation of rows with a constraint, whose change is known only with the base weight."""
    generator = torch.Generator().manual_seed(9)
    blocks = torch.randn(2, 160, 160, generator=generator) / 20
    save_file({f"{OFT}.oft_blocks": blocks, f"{OFT}.alpha": torch.tensor(0.01)}, folder / "oft.safetensors")
    base = torch.randn(320, 640, generator=generator)
    return merge_ops.load(folder / "oft.safetensors"), lambda name: base


def main(threads):
    """One line for each way."""
    torch.set_num_threads(threads)
    loras = [lora("a", 1, (24, 64)), lora("b", 2, (16, 64)), lora("c", 3, (24, 40))]
    equal = [lora(name, seed, (24, 64)) for seed, name in enumerate("abc", 1)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "merged.safetensors")

        def show(title, merged, rank=None):
            merge_ops.save(merged, path, rank, "kohya", torch.float32, overwrite=True)
            sys.stdout.write(f"{title} {hashlib.sha256(path.read_bytes()).hexdigest()}\n")

        for name in merge_ops.METHODS:
            show(f"{name}", merge(loras, WEIGHTS, name))
            show(f"{name} --rank 24", merge(loras, WEIGHTS, name, rank=24))
        for name in COMBINATIONS:
            show(f"peft {name}", merge_ops.merge(equal, WEIGHTS, combination_type=name, density=0.5))
        rotated, base = oft(Path(folder))
        show("oft", merge_ops.merge([rotated], [0.8], base=base), 24)


if __name__ == "__main__":
    main(int(sys.argv[1]))
