"""``lora-alloy distill``: train one LoRA to do what several do, each in its own prompts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..learning.defaults import LEARNING_RATE, STARTS, STEPS
from .how import add_strengths
from .merge import finish, load_loras
from .options import Commands, add_command, add_output, refuse_output, require_output, say, table
from .recording import add_recording, opened_and_recorded

if TYPE_CHECKING:
    from ..learning import DistillProgress, Retention

_EXAMPLES = """examples:
  lora-alloy distill mia.safetensors ink.safetensors:0.8 --model sdxl --prompt "mia=photo of mia" \\
      --prompt "ink=ink fox | ink house | ink tree" --rank 32 -o both.safetensors
  lora-alloy distill adapter_a adapter_b --model base_model --texts 1=a.txt --texts 2=b.txt -o merged_adapter
"""


def add_parser(commands: Commands[argparse.ArgumentParser], argv: list[str]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "distill",
        "train one LoRA that keeps what several do (needs the model)",
        "Run the model with each LoRA alone, then train one LoRA so that the model answers each time as it "
        "did with that LoRA. No images or labels are needed, only prompts or texts.",
        _EXAMPLES,
    )
    add_strengths(parser)
    add_recording(parser)
    how = parser.add_argument_group("how to train")
    how.add_argument("--rank", type=int, help="rank of the result (default: the sum of the LoRAs' ranks)")
    how.add_argument("--steps", type=int, default=STEPS, help=f"steps of training (default: {STEPS})")
    how.add_argument(
        "--learning-rate", type=float, default=LEARNING_RATE,
        help=f"relative to the size of each factor's entries (default: {LEARNING_RATE})",
    )  # fmt: skip
    how.add_argument("--batch", type=int, help="samples a step (default: 48, fewer where they are large)")
    how.add_argument(
        "--start", choices=STARTS, default=STARTS[0], help=f"the merge to begin with (default: {STARTS[0]})"
    )
    how.add_argument(
        "--seed", type=int, default=0, help="seed of noise and of the order of samples (default: 0)"
    )
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Record, distill, save, and print what was kept beside what the sum keeps."""
    require_output(args)
    loras = load_loras(args)
    refuse_output(args, loras)
    from tqdm import tqdm

    from ..learning import distill, retention
    from ..merging.merge import carry_out

    host, recording = opened_and_recorded(args, loras)
    with tqdm(desc="distilling", unit="step", disable=None, leave=False) as bar:

        def show(progress: DistillProgress) -> None:
            bar.total = progress.steps
            bar.update(progress.step - bar.n)
            bar.set_postfix_str(f"loss {progress.loss:.2e}")

        merged = distill(
            recording, host, loras, rank=args.rank, steps=args.steps, learning_rate=args.learning_rate,
            batch=args.batch, start=args.start, seed=args.seed, progress=show,
        )  # fmt: skip
    matched = recording.match(loras)
    linear = retention(recording, host, carry_out(recording.request(matched), matched, host.base))
    finish(args, merged, None)
    if not args.json:
        _print_kept(retention(recording, host, merged), linear)


def _print_kept(kept: Retention, linear: Retention) -> None:
    """Print each LoRA's share beside that of the sum, and name those that distilling did not help."""
    rows = [["share kept of", "linear", "distilled"]]
    rows += [
        [name, f"{100 * linear.loras[name]:.0f} %", f"{100 * share:.0f} %"]
        for name, share in kept.loras.items()
    ]
    say(table(rows))
    worse = [name for name, share in kept.loras.items() if share <= linear.loras[name]]
    if worse:
        say(f"  distilling did not help {', '.join(worse)}: try more prompts for it, or more steps")
