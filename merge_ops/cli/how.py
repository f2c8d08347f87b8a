"""The options that say which LoRAs to merge, and how; ``merge`` and ``fuse`` share them."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ParameterError, UnknownMethodError, did_you_mean
from ..formats.epochs import find_epochs, in_epoch_order
from ..merging.recency import recency_weights
from ..methods.peft_names import COMBINATION_TYPES, SPACES, get_combination_type
from ..methods.registry import METHODS, Param, get_method
from ..readers import READERS
from .options import add_param, add_reading

if TYPE_CHECKING:
    from ..lora import Lora

_PEFT_PARAMS = ("density", "majority_sign_method")


def add_merging(parser: argparse.ArgumentParser, argv: list[str], reader: str = READERS[0]) -> None:
    """Add the LoRAs and the options of a merge; those of the chosen method come from its signature.

    ``reader`` says what the default of ``--reader`` is, for a command that chooses it by its input.
    """
    add_strengths(parser)
    how = parser.add_argument_group("how to merge")
    _add_method(how)
    how.add_argument(
        "--space",
        choices=SPACES,
        default="delta",
        help="merge the exact weight changes (delta) or the LoRA factors (factors) (default: delta)",
    )
    how.add_argument(
        "--rank",
        type=int,
        help="truncate the result to this rank (default: keep it exact, or the sum of the ranks)",
    )
    how.add_argument(
        "--speed-loras",
        choices=("apart", "merged"),
        default="apart",
        help="add LoRAs for fewer steps (LCM, Lightning, Turbo, Hyper) after the merge, or merge them as any "
        "other (default: apart)",
    )
    how.add_argument("--scale", type=float, default=1.0, help="multiply the whole result (default: 1)")
    how.add_argument("--seed", type=int, default=0, help="seed of the random masks of DARE (default: 0)")
    how.add_argument(
        "--keep", metavar="NAME", help="the LoRA whose heads and other whole weights are kept in a conflict"
    )
    how.add_argument(
        "--reader",
        choices=READERS,
        default=reader if reader in READERS else None,
        help=f"compute DoRA and OFT as this program does, where programs differ (default: {reader})",
    )
    for param in _params_of(argv).values():
        add_param(how, param)


def add_strengths(parser: argparse.ArgumentParser) -> None:
    """Add the LoRAs, their weights and their strengths by block."""
    parser.add_argument(
        "loras",
        nargs="+",
        metavar="LORA[:WEIGHT]",
        help="a LoRA file or PEFT folder, and its weight (default: 1); or all epochs of a training, by a "
        "folder or by a pattern with * and ? in quotes, each at that weight",
    )
    parser.add_argument(
        "--recency",
        type=float,
        metavar="SHARE",
        help="count each epoch of a pattern or folder this much of the next newer one (without any, all "
        "LoRAs in the order of their numbers); the weights keep their sum",
    )
    parser.add_argument(
        "--blocks",
        action="append",
        default=[],
        metavar="[LORA=]TEXT",
        help="strengths per block and type of layer, such as 'down:0.5 mid:1 attn:0.8', a preset, or an "
        "A1111 vector; applies to all LoRAs, or to one given by name or position (1, 2, ...); repeatable",
    )
    add_reading(parser)


def _add_method(how: argparse._ArgumentGroup) -> None:
    choice = how.add_mutually_exclusive_group()
    choice.add_argument(
        "--method",
        type=_method_name,
        metavar="METHOD",
        help="the merge method, listed below (default: linear)",
    )
    choice.add_argument(
        "--combination-type",
        type=_combination_name,
        metavar="TYPE",
        help=f"merge exactly as PEFT does: {', '.join(COMBINATION_TYPES)}",
    )
    how.add_argument("--svd-rank", type=int, help="rank of PEFT's *svd types (default: the largest rank)")
    how.add_argument(
        "--svd-clamp", type=float, help="quantile at which PEFT's *svd types clamp their factors"
    )


def method_params(args: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of the method that the command line sets, by name."""
    given = vars(args)
    names = {param.name for method in METHODS.values() for param in method.params}
    return {name: given[name] for name in names if name in given}


def check_params(args: argparse.Namespace) -> None:
    """Refuse parameters of a method before anything is read, as merging would afterwards.

    Raises:
        ParameterError: for a value that is not allowed.
    """
    if not args.combination_type:
        get_method(args.method or "linear").resolve(method_params(args))


def split_weight(spec: str) -> tuple[str, float]:
    """Split ``path:0.7`` into path and weight; without a number after the last colon the weight is 1."""
    path, colon, number = spec.rpartition(":")
    try:
        return (path, float(number)) if colon and path else (spec, 1.0)
    except ValueError:
        return spec, 1.0


def paths_of(args: argparse.Namespace) -> list[str]:
    """Return the paths of the LoRAs, without their weights."""
    return [split_weight(spec)[0] for spec in args.loras]


def expand_loras(args: argparse.Namespace) -> None:
    """Put the epochs that patterns and folders name in their place in the list of LoRAs, oldest first.

    Raises:
        ParameterError: if a pattern names no LoRA, or for a wrong share of ``--recency``.
    """
    weighted = "recency" in vars(args)
    groups: list[tuple[list[Path], float]] = []
    for spec in args.loras:
        path, weight = split_weight(spec) if weighted else (spec, 1.0)
        groups.append((find_epochs(path, args.allow_pickle), weight))
    if not weighted:
        args.loras = [str(path) for paths, _ in groups for path in paths]
        return
    rows = [(path, weight) for paths, weight in groups for path in paths]
    shares = dict.fromkeys(range(len(rows)), 1.0)
    if args.recency is not None:
        starts = itertools.accumulate((len(paths) for paths, _ in groups), initial=0)
        series = [range(start, start + len(paths)) for start, (paths, _) in zip(starts, groups, strict=False)]
        series = [places for places in series if len(places) > 1] or [range(len(rows))]
        for places in series:
            order = in_epoch_order([rows[place][0] for place in places])
            weights = recency_weights(len(places), args.recency)
            for place in places:
                shares[place] = weights[order.index(rows[place][0])]
    args.loras = [f"{path}:{weight * shares[place]!r}" for place, (path, weight) in enumerate(rows)]


def blocks_of(given: list[str], paths: list[str], loras: list[Lora]) -> list[str | None]:
    """Return the block strengths of each LoRA, from the values ``TEXT`` and ``LORA=TEXT`` of ``--blocks``.

    Raises:
        ParameterError: if a name matches no LoRA, or a LoRA is given two texts.
    """
    pairs = [(name, text) for name, _, text in (option.rpartition("=") for option in given)]
    return one_per_lora(pairs, paths, loras, "--blocks")


def one_per_lora(
    given: list[tuple[str, str]], paths: list[str], loras: list[Lora], flag: str
) -> list[str | None]:
    """Return what an option says for each LoRA, from pairs ``(LoRA, text)``; no name means all others.

    Raises:
        ParameterError: if a name matches no LoRA, or a LoRA is given two texts.
    """
    own: dict[int, str] = {}
    shared = None
    for name, text in given:
        if not name:
            if shared is not None:
                raise ParameterError(f"{flag} is given twice for all LoRAs; name the LoRA, as in 1={text}")
            shared = text
            continue
        matches = [i for i, path in enumerate(paths) if name in (path, Path(path).name, loras[i].name)]
        if not matches and name.isdigit() and 0 < int(name) <= len(paths):
            matches = [int(name) - 1]
        if not matches:
            hint = did_you_mean(name, [lora.name for lora in loras])
            raise ParameterError(f"{flag} names no LoRA of this merge: {name!r}{hint}")
        for i in matches:
            if i in own:
                raise ParameterError(f"{flag} is given twice for {loras[i].name}; write one text")
            own[i] = text
    return [own.get(i, shared) for i in range(len(paths))]


def method_help() -> str:
    """Return the list of methods and their parameters for ``--help``."""
    lines = ["methods and their parameters:"]
    for method in METHODS.values():
        flags = [f"--{p.name.replace('_', '-')} (default: {p.default})" for p in method.params]
        lines.append(f"  {method.name:<16} {', '.join(flags) or 'none'}")
    return "\n".join(lines) + "\n\n"


def _method_name(name: str) -> str:
    try:
        return get_method(name).name
    except UnknownMethodError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _combination_name(name: str) -> str:
    try:
        get_combination_type(name)
    except UnknownMethodError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def _params_of(argv: list[str]) -> dict[str, Param]:
    """Return the parameters of the method that the arguments name, before they are fully parsed."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--method", default="linear")
    early.add_argument("--combination-type")
    chosen = early.parse_known_args(argv)[0]
    row = COMBINATION_TYPES.get(chosen.combination_type or "")
    if row is not None:  # PEFT accepts density and the sign vote for every type
        return {p.name: p for method in METHODS.values() for p in method.params if p.name in _PEFT_PARAMS}
    method = METHODS.get(chosen.method)
    return {p.name: p for p in method.params} if method else {}
