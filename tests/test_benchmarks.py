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
