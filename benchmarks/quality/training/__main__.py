"""Train the benchmark's eight LoRAs, three times each, on the demo's base model. Under two minutes each.

python -m benchmarks.quality.training [TRAINING ...] [NAME ...]      for example: A C neon

LoRAs of different trainings start from other factors and see other data, in another order. The recipe is the
demo's own (``merge_ops/demo/training/train_loras.py``).
"""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import torch

from merge_ops.demo.training.train_loras import ATTENTION, Plan, train

from ..plan import ASSETS, TRAININGS

PLANS = (
    Plan("five", "diffusers", rank=4, alpha=4, digit=5),
    Plan("six", "diffusers-0.21", rank=4, alpha=4, digit=6),
    Plan("seven", "diffusers", rank=4, alpha=8, digit=7),
    Plan("eight", "kohya", rank=8, alpha=8, digit=8),
    Plan("nine", "kohya", rank=4, alpha=6, digit=9),
    Plan("neon", "diffusers", rank=4, alpha=6, style="neon"),
    Plan("slant", "kohya", rank=4, alpha=8, style="slant"),
    Plan("outline", "diffusers", rank=3, alpha=3, style="outline", targets=(*ATTENTION, "conv1", "conv2")),
)


def main() -> None:
    """Train all LoRAs, or those of the trainings and names on the command line."""
    torch.set_num_threads(1)
    trainings = [name for name in TRAININGS if name in sys.argv[1:]] or list(TRAININGS)
    names = [plan.name for plan in PLANS if plan.name in sys.argv[1:]]
    for training in trainings:
        for number, plan in enumerate(PLANS):
            if not names or plan.name in names:
                seed = 100 * (1 + TRAININGS.index(training)) + number
                train(plan, seed, ASSETS / training)


if __name__ == "__main__":
    main()
