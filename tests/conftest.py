"""Fixtures for all tests: LoRAs made in memory from a seed, and where a real ComfyUI is."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from merge_ops import Lora, LowRank

ROOT = Path(__file__).parents[1]
# name -> (layout, out, in with the kernel folded in, kernel): one layer of every layout
SHAPES = {
    "block.2.fc": ("linear", 40, 28, ()),
    "block.10.fc": ("linear", 24, 36, ()),
    "conv": ("conv", 16, 5 * 9, (3, 3)),
    "pointwise": ("conv", 12, 10, (1, 1)),
    "embed": ("embedding", 14, 30, ()),
    "c_attn": ("fan_in_fan_out", 26, 18, ()),
}


# what takes longest comes first, so that the workers of ``make test`` end at about the same time
GROUPS = {"server": 0, "inside": 1}


def pytest_itemcollected(item):
    """Mark what a test needs, as its fixtures say: a ComfyUI or a browser, and a worker that has them.

    A worker gets whole files, and one worker everything with ComfyUI's server or the browser: each is started
    once. The checks inside ComfyUI are another group.
    """
    needed = set(getattr(item, "fixturenames", ()))
    if needed & {"comfyui_python", "browser"}:
        item.add_marker(pytest.mark.comfyui)
    group = "server" if needed & {"server", "browser"} else "inside" if "inside" in needed else None
    item.add_marker(pytest.mark.xdist_group(group or item.path.relative_to(ROOT).as_posix()))


def pytest_collection_modifyitems(items):
    """Sort the long groups to the front."""
    items.sort(key=lambda item: GROUPS.get(item.get_closest_marker("xdist_group").args[0], len(GROUPS)))


def pytest_terminal_summary(terminalreporter, config):
    """Say how much was left out where there is no ComfyUI or no browser, and whether servers were shared."""
    passed = terminalreporter.stats.get("passed", ())
    if config.getoption("dist", "no") == "loadgroup" and not any("@" in report.nodeid for report in passed):
        terminalreporter.write_line(
            "pytest-xdist did not group the tests: each worker started servers of its own"
        )
    skipped = [report for report in terminalreporter.stats.get("skipped", ()) if "comfyui" in report.keywords]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests that need a ComfyUI or a browser were skipped")


@pytest.fixture(scope="session")
def make_lora() -> Callable[..., Lora]:
    """Factory of a LoRA with random-normal factors; ``shapes`` as in ``SHAPES`` or ``{name: (out, in)}``.

    ``decay`` < 1 makes the singular values fall from rank-one term to rank-one term, as trained ones do.
    """

    def make(name="lora", *, shapes=None, rank=4, alpha=None, seed=0, decay=1.0, dtype=torch.float32, **more):
        generator = torch.Generator().manual_seed(seed)
        layers = {}
        for layer, shape in (shapes or SHAPES).items():
            layout, rows, columns, kernel = shape if len(shape) == 4 else ("linear", *shape, ())
            fall = decay ** torch.arange(rank)
            up = torch.randn(rows, rank, generator=generator) * fall
            down = torch.randn(rank, columns, generator=generator) / columns**0.5
            scale = (rank if alpha is None else alpha) / rank
            layers[layer] = LowRank(up.to(dtype), down.to(dtype), scale, layout, kernel, layer)
        return Lora(name, layers, **more)

    return make


@pytest.fixture(scope="session")
def stack(make_lora) -> list[Lora]:
    """Four LoRAs of different names, ranks and alphas; the last one has no ``conv``."""
    loras = [
        make_lora("delta", rank=4, alpha=8, seed=1),
        make_lora("alpha", rank=2, alpha=3, seed=2),
        make_lora("charlie", rank=7, alpha=7, seed=3),
        make_lora("bravo", rank=4, alpha=1, seed=4),
    ]
    loras[3].layers.pop("conv")
    return loras


@pytest.fixture(scope="session")
def refactored() -> Callable[..., Lora]:
    """Rewrites a LoRA: ``up G`` and ``G^-1 down``, padded with zero rank, another alpha, the same delta."""

    def rewrite(lora, *, name=None, pad=3, rescale=5.0, seed=99):
        generator = torch.Generator().manual_seed(seed)
        layers = {}
        for key, layer in lora.layers.items():
            r = layer.rank
            turn = torch.linalg.qr(torch.randn(r, r, dtype=torch.float64, generator=generator))[0]
            turn = turn * (0.5 + torch.rand(r, dtype=torch.float64, generator=generator))
            up = layer.up.double() @ turn * layer.scale / rescale
            down = torch.linalg.inv(turn) @ layer.down.double()
            up = torch.cat((up, up.new_zeros(up.shape[0], pad)), dim=1).float()
            down = torch.cat((down, down.new_zeros(pad, down.shape[1]))).float()
            layers[key] = replace(layer, up=up, down=down, scale=rescale)
        return replace(lora, name=name or lora.name, layers=layers)

    return rewrite


def find_comfyui():
    """COMFYUI_DIR; if that is not set, the ComfyUI that this pack lies in, or ~/comfy/ComfyUI."""
    given = os.environ.get("COMFYUI_DIR")
    places = [Path(given)] if given else [ROOT.parents[1], Path.home() / "comfy" / "ComfyUI"]
    return next((place for place in places if (place / "comfy" / "sd.py").is_file()), None)


def pytest_report_header():
    """Say which ComfyUI is tested."""
    root = find_comfyui()
    if root is None:
        return "ComfyUI: none"
    stated = re.search(r'__version__ = "(.+)"', (root / "comfyui_version.py").read_text(encoding="utf-8"))
    return f"ComfyUI: {stated[1] if stated else 'of unknown version'} at {root}"


@pytest.fixture(scope="session")
def comfyui_python():
    """``(ComfyUI's folder, its interpreter)``; the tests skip without them."""
    root = find_comfyui()
    if root is None:
        place = os.environ.get("COMFYUI_DIR") or "~/comfy/ComfyUI"
        pytest.skip(f"there is no ComfyUI at {place}: set COMFYUI_DIR to its folder")
    python = Path(os.environ.get("COMFYUI_PYTHON") or root / ".venv" / "bin" / "python")
    if not python.is_file():
        pytest.skip(f"there is no {python}: make a virtual environment in .venv, or set COMFYUI_PYTHON")
    return root, python


@pytest.fixture(scope="session")
def comfyui_env():
    """Environment of a ComfyUI process: stand-ins for missing packages, one thread."""
    path = os.pathsep.join(filter(None, [str(ROOT / "tests" / "comfyui"), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
