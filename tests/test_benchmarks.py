"""The benchmarks run, against real PEFT, and their figures are of the right kind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_a_short_run(tmp_path):
    """Two types: ratio, error to float64 and machine are in the JSON, and the table says what is a part."""
    out, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "cat", "svd"]
    done = subprocess.run(
        [*command, "--json", str(out), "--plot", str(plot)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "quick run: some of the layers" in done.stdout
    result = json.loads(out.read_text())
    assert plot.stat().st_size > 5000
    rows = {(row["method"], row["n"]): row for row in result["rows"]}
    assert rows.keys() == {(name, n) for name in ("cat", "svd") for n in (2, 4)}
    for (name, _), row in rows.items():
        assert row["theirs"] > row["ours"] > 0, "slower than PEFT"
        assert 0 <= row["error"] < 1e-5, name


def test_cores_and_large_layers(tmp_path):
    """A figure for every row, in seconds that pass and in nanoseconds a weight."""
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "cores", "large", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 5 and all(row["ours"] > 0 and row["ratio"] > 0 for row in rows)
    assert sum("CPU seconds" in row["note"] for row in rows) == 4
    (flux,) = [row for row in rows if "Flux" in row["method"]]
    assert flux["ratio"] == pytest.approx(flux["ours"] * 1e9 / (3072 * 12288))
