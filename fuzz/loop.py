"""A small fuzzer for use without atheris: it mutates inputs and keeps those that reach new lines."""

from __future__ import annotations

import hashlib
import random
import sys
import time
import traceback
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from mutate import mutated, parsed
from targets import CASE, one_input

_LINES: set[tuple[CodeType, int]] = set()
_CASES = 0.5  # the share of structured inputs
_TOLD = 5000  # inputs between two lines on the terminal
_TRACED = 20  # one in so many is traced before Python 3.12, where that takes longer than the input itself
_TOOL = 3  # a tool id of sys.monitoring that no debugger, profiler or coverage tool uses


def run(seeds: Path, findings: Path, seconds: float, seed: int, words: list[bytes], most: int = 0) -> None:
    """Fuzz for some seconds, or ``most`` inputs if that is given.

    Failing inputs go to ``findings``, their tracebacks to the terminal.
    """
    rng = random.Random(seed)
    pool = [path.read_bytes() for path in sorted(seeds.iterdir())]
    _watch()
    started, runs, found = time.monotonic(), 0, 0
    for data in pool:
        found += _try(data, findings)
    cases = [data for data in pool if data[:1] == bytes([CASE])]
    while time.monotonic() - started < seconds and (not most or runs < most):
        data = rng.choice(cases if rng.random() < _CASES else pool)
        if data[:1] == bytes([CASE]) and parsed(data[1:]) is not None:
            data = bytes([CASE]) + mutated(data[1:], rng, cases)
        else:
            data = _mutate(data, rng, pool, words)
        known = len(_LINES)
        if sys.version_info < (3, 12):
            sys.settrace(_trace if runs % _TRACED == 0 else None)
        found += _try(data, findings)
        runs += 1
        if len(_LINES) > known:
            pool.append(data)
            if data[:1] == bytes([CASE]):
                cases.append(data)
        if runs % _TOLD == 0:
            rate = runs / (time.monotonic() - started)
            sys.stdout.write(f"{runs} inputs, {rate:.0f} a second, {len(_LINES)} lines, {found} findings\n")
            sys.stdout.flush()
    sys.stdout.write(f"{runs} inputs, {len(_LINES)} lines, {len(pool)} kept, {found} findings\n")


def _try(data: bytes, findings: Path) -> int:
    try:
        one_input(data)
    except BaseException as error:  # any error is a finding
        if isinstance(error, KeyboardInterrupt):
            raise
        (findings / f"crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
        traceback.print_exc()
        return 1
    return 0


def _mutate(data: bytes, rng: random.Random, pool: list[bytes], words: list[bytes]) -> bytes:
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        place = rng.randrange(len(raw) + 1)
        end = min(len(raw), place + rng.choice((1, 1, 2, 4, 16)))
        piece = rng.choice(pool)
        cut = rng.randrange(len(piece) + 1)
        raw[place:end] = rng.choice(
            (
                bytes([rng.randrange(256)]),
                b"",
                rng.choice(words),
                raw[place:end] * 2,
                str(rng.choice((0, 1, -1, 2**31, 2**63, rng.randrange(100)))).encode(),
                rng.choice((b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\u0000")),
                piece[cut : cut + rng.randrange(1, 40)],
            )
        )
    return bytes(raw[:4096])


def _watch() -> None:
    """Record each line of merge_ops that runs, with sys.monitoring, or sys.settrace before Python 3.12."""
    if sys.version_info >= (3, 12):
        monitoring = sys.monitoring

        def on_line(code: CodeType, line: int) -> Any:
            if "merge_ops" in code.co_filename:
                _LINES.add((code, line))
            return monitoring.DISABLE  # reports each line once, which is enough

        monitoring.use_tool_id(_TOOL, "fuzz")
        monitoring.register_callback(_TOOL, monitoring.events.LINE, on_line)
        monitoring.set_events(_TOOL, monitoring.events.LINE)
    else:
        sys.settrace(_trace)


def _trace(frame: FrameType, event: str, _: Any) -> Any:
    if "merge_ops" not in frame.f_code.co_filename:
        return None
    if event == "line":
        _LINES.add((frame.f_code, frame.f_lineno))
    return _trace
