"""``lora-alloy resize``, and ranks by need in the other commands: what they print, write and refuse."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import merge_ops
from merge_ops.cli import main

STEM = "lora_unet_down_blocks_0_attentions_0_"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


@pytest.fixture
def big(tmp_path, monkeypatch):
    """A kohya file with falling singular values: three linear layers and a convolution, alpha below rank."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for number, (stem, out, columns) in enumerate(
        [
            (f"{STEM}transformer_blocks_0_attn1_to_q", 320, 320),
            (f"{STEM}transformer_blocks_0_attn1_to_k", 320, 320),
            (f"{STEM}proj_in", 320, 320),
            (CONV, 320, 320),
        ]
    ):
        fall = (0.75 + 0.05 * number) ** torch.arange(16)
        down = torch.randn(16, columns, generator=generator) / columns**0.5
        up = torch.randn(out, 16, generator=generator) * fall
        if stem == CONV:
            down = torch.randn(16, columns, 3, 3, generator=generator) / columns**0.5
            up = up[..., None, None]
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        tensors[f"{stem}.alpha"] = torch.tensor(4.0)
    save_file(tensors, tmp_path / "big.safetensors", {"ss_network_dim": "16"})
    monkeypatch.chdir(tmp_path)
    return tensors


def run(capsys, *args):
    try:
        code = main(list(map(str, args)))
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def as_kohya(tensors, method, param, most, most_conv):
    """Ranks and deltas as kohya's criterion says, by stem, from whole deltas in float64."""
    wanted = {}
    for key in [key for key in tensors if key.endswith(".alpha")]:
        stem = key.removesuffix(".alpha")
        down, up = tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"]
        scale = float(tensors[key]) / down.shape[0]
        u, s, vh = torch.linalg.svd(up.flatten(1).double() @ down.flatten(1).double(), full_matrices=False)
        if method == "sv_ratio":
            rank = int((s > s[0] / param).sum())
        elif method == "sv_fro":
            rank = int((s.square().cumsum(0).sqrt() / s.square().sum().sqrt() < param).sum()) + 1
        else:
            rank = int((s.cumsum(0) / s.sum() < param).sum()) + 1
        rank = max(1, min(rank, most_conv if down.ndim == 4 else most))
        wanted[stem] = rank, scale * (u[:, :rank] * s[:rank]) @ vh[:rank]
    return wanted


@pytest.mark.parametrize(
    ("method", "param"),
    [("sv_ratio", 2), ("sv_ratio", 10), ("sv_fro", 0.8), ("sv_fro", 0.97), ("sv_cumulative", 0.6)],
)
@pytest.mark.parametrize(("most", "conv"), [(16, None), (6, 3)])
def test_kohyas_options(big, method, param, most, conv, tmp_path, capsys):
    """The same ranks and the same deltas; the limits hold for convolutions and for the others."""
    limits = ["--new_rank", most] + ([] if conv is None else ["--new_conv_rank", conv])
    how = ("--dynamic_method", method, "--dynamic_param", param, *limits)
    code, out, error = run(
        capsys, "resize", "big.safetensors", *how, "--verbose", "--dtype", "float32", "-o", "x.safetensors"
    )
    assert code == 0, error
    written = merge_ops.load("x.safetensors")
    wanted = as_kohya(big, method, param, most, conv or most)
    assert len(written.layers) == len(wanted) == 4
    for layer in written.layers.values():
        rank, delta = wanted[layer.key]
        assert layer.rank == rank
        assert torch.allclose(layer.delta().flatten(1).double(), delta, atol=1e-6)
    with safe_open("x.safetensors", "pt") as file:
        same = len({rank for rank, _ in wanted.values()}) == 1
        assert file.metadata()["ss_network_dim"] == (str(most) if same else "Dynamic")
    for name, layer in written.layers.items():
        assert re.search(rf"^{re.escape(name)} +16 +{layer.rank} +\d+\.\d\d%$", out, re.MULTILINE)


@pytest.mark.parametrize("per_layer", [(), ("--per-layer",)])
def test_energy(big, per_layer, tmp_path, capsys):
    """The table comes first, with the file that is asked for; the file is as large as the table says."""
    how = ("resize", "big.safetensors", "--energy", 0.9, *per_layer)
    code, out, error = run(capsys, *how, "-o", "x.safetensors")
    assert code == 0, error
    size = (tmp_path / "x.safetensors").stat().st_size
    chosen = re.search(r"^(9\d\.\d\d)% .* ([\d.]+) MB  this file$", out, re.MULTILINE)
    assert chosen[2] == f"{size / 1e6:.2f}" and out.index("this file") < out.index("wrote x.safetensors")
    report = json.loads(run(capsys, *how, "--json", "--overwrite", "-o", "x.safetensors")[1])
    assert report["sizes"]["chosen"]["size"] == report["saved"]["size"] == size
    assert report["saved"]["kept"]["energy"] >= 0.9
    lines = report["sizes"]["lines"]
    assert [line["size"] for line in lines] == sorted(line["size"] for line in lines) and len(lines) == 8
    assert (min(layer["energy_kept"] for layer in report["saved"]["layers"]) >= 0.9) == bool(per_layer)


@pytest.mark.parametrize("size", ["60kB", "80 KiB", "0.1MB"])
def test_size(big, size, tmp_path, capsys):
    number, unit = re.fullmatch(r"([\d.]+) ?(\w+)", size).groups()
    most = float(number) * {"kB": 1000, "KiB": 1024, "MB": 10**6}[unit]
    code, _, error = run(capsys, "resize", "big.safetensors", "--size", size, "-o", "x.safetensors")
    assert code == 0, error
    assert most - 7000 < (tmp_path / "x.safetensors").stat().st_size <= most


def test_a_dry_run_writes_nothing(big, tmp_path, capsys):
    """Without an option it is the table alone; with one, the ranks that it would choose."""
    before = sorted(tmp_path.iterdir())
    code, out, _ = run(capsys, "resize", "big.safetensors", "--dry-run")
    assert code == 0 and "100.00%  16" in out and "this file" not in out
    code, out, _ = run(capsys, "resize", "big.safetensors", "--rank", 4, "--dry-run")
    assert code == 0 and re.search(r"  4 +4\.0 .*this file", out)
    code, out, _ = run(capsys, "resize", "big.safetensors", "--size", "60kB", "--dry-run", "--json")
    ranks = json.loads(out)["sizes"]["ranks"]
    assert code == 0 and len(ranks) == 4 and min(ranks.values()) >= 1
    assert sorted(tmp_path.iterdir()) == before


def test_merges_and_recipes_take_them_too(big, tmp_path, capsys):
    """A merge by TIES at a size; the recipe makes it again, or with other ranks."""
    how = ("merge", "big.safetensors:0.5", "big.safetensors", "--method", "ties")
    code, out, error = run(capsys, *how, "--size", "90kB", "-o", "x.safetensors")
    assert code == 0 and "this file" in out, error
    (tmp_path / "again").mkdir()
    code, _, error = run(
        capsys, "recipe", "run", "x.safetensors", "--folder", ".", "-o", "again/x.safetensors"
    )
    assert code == 0, error
    first, again = (
        (tmp_path / "x.safetensors").read_bytes(),
        (tmp_path / "again" / "x.safetensors").read_bytes(),
    )
    assert len(first) <= 90_000 and first == again
    assert "ranks: {'energy':" in run(capsys, "recipe", "show", "x.safetensors")[1]
    code, _, error = run(
        capsys, "recipe", "run", "x.safetensors", "--folder", ".", "--energy", 0.3, "-o", "other.safetensors"
    )
    assert code == 0, error
    assert merge_ops.read_recipe("other.safetensors").ranks == merge_ops.RankRule(energy=0.3)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ((), 2, "--rank, --energy, --ratio or --size"),
        (("--energy", "0.9", "--size", "5MB"), 2, "not allowed with"),
        (("--energy", "1.5"), 1, "energy is a share above 0 and up to 1"),
        (("--size", "50"), 1, "with its unit"),
        (("--size", "1kB"), 1, "too small: with rank 1 in every layer"),
        (("--per-layer",), 2, "--per-layer belongs to"),
        (("--dynamic_method", "sv_fro", "--dynamic_param", "0.9"), 2, "--new_rank"),
        (("--dynamic_method", "sv_fro", "--new_rank", "4"), 2, "belong together"),
        (("--dynamic_method", "sv_knee", "--dynamic_param", "0.9"), 2, "sv_cumulative"),
        (
            ("--dynamic_method", "sv_fro", "--dynamic_param", "0.9", "--rank", "4", "--ratio", "2"),
            2,
            "either",
        ),
        (("--dynamic_method", "sv_fro", "--dynamic_param", "1.1", "--rank", "4"), 1, "above 0 and up to 1"),
        (("--rank", "0", "--energy", "0.5"), 1, "limit must be"),
    ],
)
def test_refused(big, options, code, says, tmp_path, capsys):
    found, out, error = run(capsys, "resize", "big.safetensors", *options, "-o", "x.safetensors")
    assert (found, out) == (code, "") and says in error, error
    assert not (tmp_path / "x.safetensors").exists()
