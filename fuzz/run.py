"""Fuzz the readers: ``python fuzz/run.py --minutes 10``. Uses atheris if it is installed.

Without atheris a loop of our own mutates the seeds and keeps inputs that reach new lines. Findings are
written to ``fuzz/findings``; ``python fuzz/run.py FILE`` runs one again.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
WORDS = """dtype shape data_offsets __metadata__ F32 F16 BF16 F64 F4 F8_E4M3 BOOL I64 .lora_up.weight .alpha
.lora_down.weight .lora_A.weight .lora_B.weight .lora_mid.weight .hada_w1_a .dora_scale lora_adapter_metadata
unet:0:up unet:0:down text_encoder:0:up base_model.model. lora_unet_ lora_te1_ diffusion_model. peft_type
.hada_w2_b .hada_t1 .lokr_w1 .lokr_w2_a .lokr_t2 .a1.weight .b2.weight .bm.weight .oft_blocks .rescale
.oft_R.weight .boft_R .boft_s .ia3_l .on_input .diff .diff_b .w_norm .b_norm .set_weight .reshape_weight
.lora_magnitude_vector .lora_B.bias LOHA LOKR IA3 OFT BOFT modules_to_save feedforward_modules coft eps
num_cayley_neumann_terms use_cayley_neumann base_model_class lora_alpha alpha_pattern
rank_pattern auto_mapping use_rslora null NaN Infinity 1e400 18446744073709551615"""


def main() -> None:
    """Read the arguments and fuzz."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--runs", type=int, default=0, help="stop after so many inputs (only our own loop)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loop", action="store_true", help="use our own loop even if atheris is installed")
    parser.add_argument("file", nargs="?", type=Path, help="run only this input")
    args = parser.parse_args()
    (HERE / "findings").mkdir(exist_ok=True)
    if args.file is not None:
        from targets import check_memory, one_input

        one_input(args.file.read_bytes())
        check_memory()
    elif args.loop or not _with_atheris(args.minutes, args.seed):
        from loop import run

        run(
            HERE / "corpus",
            HERE / "findings",
            args.minutes * 60,
            args.seed,
            [word.encode() for word in WORDS.split()],
            args.runs,
        )


def _with_atheris(minutes: float, seed: int) -> bool:
    """Fuzz with atheris, which ends the process; return False if it is not installed."""
    try:
        import atheris
    except ImportError:
        return False
    import torch  # noqa: F401  before the instrumentation, which is for our own code

    # atheris's hooks for str and re stay off: with them, startswith rejects the tuples that our readers pass
    with atheris.instrument_imports(include=["merge_ops"]):
        from targets import one_input
    grown = HERE / "grown"
    grown.mkdir(exist_ok=True)
    words = HERE / "grown.dict"
    words.write_text("".join(f'"{word}"\n' for word in WORDS.split()), encoding="utf-8")
    options = [f"-max_total_time={minutes * 60:.0f}", f"-seed={seed}", "-max_len=4096", "-timeout=10"]
    options += [
        "-rss_limit_mb=3000",
        f"-dict={words}",
        f"-artifact_prefix={HERE / 'findings'}/",
        "-print_final_stats=1",
    ]
    atheris.Setup(
        [sys.argv[0], *options, str(grown), str(HERE / "corpus")], one_input, custom_mutator=_mutator(atheris)
    )
    atheris.Fuzz()
    return True


def _mutator(atheris: Any) -> Callable[[bytes, int, int], bytes]:
    """Structured inputs are changed as such, all others byte by byte."""
    from mutate import mutated, parsed
    from targets import CASE

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        if data[:1] != bytes([CASE]) or parsed(data[1:]) is None:
            return bytes(atheris.Mutate(data, most))
        return (bytes([CASE]) + mutated(data[1:], random.Random(seed), [data]))[:most]

    return mutate


if __name__ == "__main__":
    main()
