"""Saves in child processes that are killed or compete. Run by the tests; prints what it saw as JSON.

saver.py kill FOLDER FORM COUNT      kill -9 a child that saves two merges in turn, at random moments
saver.py compete FOLDER FORM         four children save under one name at once, without and with overwrite
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import merge_ops

NAMES = [f"unet.down_blocks.{i // 4}.attentions.{i % 4}.proj_in" for i in range(12)]


def merges():
    """Two merges of other numbers and alphas; a file of one and a scale of the other would be seen."""
    found = []
    for seed, rank in ((1, 4), (2, 8)):
        generator = torch.Generator().manual_seed(seed)
        layers = {
            name: merge_ops.LowRank(
                torch.randn(320, rank, generator=generator), torch.randn(rank, 320, generator=generator), 0.5
            )
            for name in NAMES
        }
        found.append(merge_ops.merge([merge_ops.Lora(f"lora{seed}", layers, "diffusers")]))
    return found


def content(target):
    """The digests of a file, or of the two files of a folder; None if there is nothing of the name."""
    if not target.exists():
        return None
    files = sorted(target.glob("adapter_*")) if target.is_dir() else [target]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def save(merged, target, form, overwrite=True):
    merge_ops.save(merged, target, format=form, overwrite=overwrite)


def kill(folder, form, count):
    pair, target, rng = merges(), folder / ("x" if form == "peft" else "x.safetensors"), random.Random(7)
    whole = []
    for merged in pair:
        save(merged, target, form)
        whole.append(content(target))
    started = time.monotonic()
    save(pair[0], target, form)
    length = time.monotonic() - started
    wrong, states = [], []
    for turn in range(count):
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            save(pair[0], folder.parent / f"warm{target.suffix}", form)  # the first after a fork takes long
            os.write(tell, b".")
            for merged in (pair[turn % 2 :] + pair[: turn % 2]) * 100:
                save(merged, target, form)
                os.write(tell, b".")
            os._exit(0)
        for _ in range(1 + rng.randrange(3)):  # then it is somewhere in its first save or a later one
            os.read(ready, 1)
        time.sleep(rng.uniform(0, length))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)
        now = content(target)
        states.append("none" if now is None else "ab"[whole.index(now)] if now in whole else "half")
        if now is not None and len(merge_ops.load(target).layers) != len(NAMES):
            wrong.append("layers are missing")
    left = sorted(path.name for path in folder.iterdir() if path != target)
    sys.stdout.write(json.dumps({"states": states, "wrong": wrong, "left": left}))


def child_saves(merged, target, form, overwrite, rounds):
    """The exit code says how many of the saves were refused; 100 if anything but a MergeError came."""
    child = os.fork()
    if child:
        return child
    refused = 0
    try:
        for _ in range(rounds):
            try:
                save(merged, target, form, overwrite)
            except merge_ops.MergeError:
                refused += 1
        os._exit(refused)
    finally:
        os._exit(100)


def compete(folder, form):
    pair = merges()
    said = {}
    for overwrite, rounds in ((False, 1), (True, 10)):
        target = folder / (f"x{rounds}" if form == "peft" else f"x{rounds}.safetensors")
        children = [child_saves(pair[i % 2], target, form, overwrite, rounds) for i in range(4)]
        seen = []
        while children:
            if (now := content(target) if form != "peft" else None) is not None and now not in seen:
                seen.append(now)
            for child in list(children):
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    children.remove(child)
                    said.setdefault(str(overwrite), []).append(os.waitstatus_to_exitcode(status))
        whole = []
        for i, merged in enumerate(pair):
            other = folder / f"whole{rounds}{i}" / target.name
            other.parent.mkdir()
            save(merged, other, form)
            whole.append(content(other))
        said[f"half {overwrite}"] = [now for now in [*seen, content(target)] if now not in whole]
        said[f"layers {overwrite}"] = len(merge_ops.load(target).layers)
    said["left"] = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, place, form, *rest = sys.argv[1:]
    if command == "kill":
        kill(Path(place), form, int(rest[0]))
    else:
        compete(Path(place), form)
