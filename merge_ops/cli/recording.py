"""The options that say how LoRAs are recorded with a model; ``measure`` and ``distill`` share them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ParameterError
from ..saving.file_names import check_file
from .how import blocks_of, one_per_lora, split_weight
from .options import DTYPES, UsageError, dtype_of, progress_bar

if TYPE_CHECKING:
    from ..learning import Host, Recording
    from ..lora import Lora
    from ..models.opened import OpenedModel


def add_recording(parser: argparse.ArgumentParser) -> None:
    """Add the model, the prompts or texts, and how to sample."""
    how = parser.add_argument_group("the model, and what to record with it")
    how.add_argument(
        "--model", required=True, metavar="FOLDER", help="the base model: a diffusers or transformers folder"
    )
    how.add_argument(
        "--prompt", action="append", default=[], metavar="LORA=TEXT", dest="prompts",
        help="prompts that show what a LoRA does, trigger words included, separated by '|'; the LoRA by name "
        "or position. One is enough for a subject; a style needs three to five with different subjects",
    )  # fmt: skip
    how.add_argument(
        "--texts", action="append", default=[], metavar="LORA=FILE",
        help="for a text model: a file with unlabelled texts of a LoRA's task, one on each line",
    )  # fmt: skip
    how.add_argument(
        "--keep-prompt", action="append", metavar="TEXT", dest="kept",
        help="a prompt whose result must stay as the base makes it; repeatable (default: the empty prompt)",
    )  # fmt: skip
    how.add_argument(
        "--together", action="append", metavar="TEXT",
        help="a prompt that names several LoRAs; repeatable (default: the LoRAs' first prompts in pairs)",
    )  # fmt: skip
    how.add_argument("--size", type=int, help="width and height of the images (default: the model's own)")
    how.add_argument("--sampling-steps", type=int, default=8, help="sampling steps of an image (default: 8)")
    how.add_argument("--images", type=int, default=1, help="images of each prompt (default: 1)")
    how.add_argument(
        "--model-dtype", choices=DTYPES, default="float32", help="dtype of the model (default: float32)"
    )
    how.add_argument(
        "--recording", metavar="FILE", help="read the recording from this file, or write it if there is none"
    )


def opened_and_recorded(args: argparse.Namespace, loras: list[Lora]) -> tuple[Host, Recording]:
    """Open the model and record with it, or read the recording that is there.

    Raises:
        ParameterError: if a LoRA has no prompt, or no texts.
    """
    if args.recording and not Path(args.recording).exists():
        check_file(Path(args.recording), ".safetensors", overwrite=False)
    from ..learning import load_recording, save_recording
    from ..merging.devices import usable_device
    from ..models.opened import open_model

    model = open_model(args.model, dtype_of(args.model_dtype), usable_device(args.device))
    host = model.host
    if args.recording and Path(args.recording).exists():
        recording = load_recording(args.recording)
        recording.match(loras)
        recording.check(host)
        return host, recording
    recording = _record(args, loras, model)
    if args.recording and not vars(args).get("dry_run"):
        save_recording(recording, args.recording)
    return host, recording


def _record(args: argparse.Namespace, loras: list[Lora], model: OpenedModel) -> Recording:
    paths, weights = zip(*map(split_weight, args.loras), strict=True)
    for lora, weight in zip(loras, weights, strict=True):
        if weight == 0:
            raise ParameterError(f"{lora.name} is at weight 0, so there is nothing to record; leave it out")
    shared = {
        "weights": list(weights),
        "blocks": blocks_of(args.blocks, list(paths), loras),
        "seed": args.seed,
    }
    from ..models.recorded import record_pipeline, record_texts

    with progress_bar("recording", "LoRA") as progress:
        if model.pipeline is not None:
            prompts = _named(args.prompts, list(paths), loras, "--prompt", "a prompt that shows what it does")
            size = {} if args.size is None else {"height": args.size, "width": args.size}
            sampling = {"num_inference_steps": args.sampling_steps, "num_images_per_prompt": args.images}
            return record_pipeline(
                model.pipeline, loras, [_split(text) for text in prompts], progress=progress,
                keep=[""] if args.kept is None else args.kept, together=args.together,
                sampling=sampling | size, **shared,
            )  # fmt: skip
        files = _named(args.texts, list(paths), loras, "--texts", "a file with texts of its task")
        return record_texts(
            model.model, model.tokenizer, loras, [_lines(file) for file in files], keep=args.kept or (),
            progress=progress, **shared,
        )  # fmt: skip


def _named(given: list[str], paths: list[str], loras: list[Lora], flag: str, what: str) -> list[str]:
    pairs = [
        (name, text) if equals else ("", name) for name, equals, text in (g.partition("=") for g in given)
    ]
    found = one_per_lora(pairs, paths, loras, flag)
    for number, (lora, text) in enumerate(zip(loras, found, strict=True), start=1):
        if not text:
            raise UsageError(f"{lora.name} needs {what}: give it as {flag} {number}=...")
    return [text or "" for text in found]


def _split(text: str) -> Sequence[str]:
    return [part.strip() for part in text.split("|") if part.strip()]


def _lines(file: str) -> list[str]:
    lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]
