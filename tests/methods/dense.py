"""Deltas as plain float64 matrices, for oracles that know nothing of factors."""

import torch

from merge_ops import Lora, LowRank

DOUBLE = torch.float64


def random_loras(count, *, shape=(9, 7), ranks=(2, 3, 1, 2), seed=0, scale=0.5):
    """LoRAs of one layer, whose ranks and sizes differ."""
    generator = torch.Generator().manual_seed(seed)
    loras = []
    for i in range(count):
        up = torch.randn(shape[0], ranks[i], generator=generator) * (1 + i)
        down = torch.randn(ranks[i], shape[1], generator=generator)
        loras.append(Lora(f"lora{i}", {"layer": LowRank(up, down, scale, "linear", (), "layer")}))
    return loras


def matrices(loras, weights=None):
    """Each weight times each delta, ``(n, out, in)`` in float64."""
    weights = weights or [1.0] * len(loras)
    return torch.stack(
        [
            w
            * lora.layers["layer"].scale
            * lora.layers["layer"].up.double()
            @ lora.layers["layer"].down.double()
            for w, lora in zip(weights, loras, strict=True)
        ]
    )


def thin_svd(matrix):
    """``(u, s, vh)`` without the directions that a low-rank matrix does not have."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    live = s > 1e-9 * s[0]
    return u[:, live], s[live], vh[live]


def assert_near(found, wanted, tolerance=1e-5):
    """Relative to the norm of what is wanted: factors are float32."""
    assert float((found.double() - wanted).norm()) <= tolerance * float(wanted.norm()) + 1e-12
