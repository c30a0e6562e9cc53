"""The benchmark of drafts runs, and finds the same tokens on both sides."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_run_in_small(tmp_path):
    out = tmp_path / "report.md"
    ran = subprocess.run(
        [sys.executable, "benchmarks/draft.py", "--tiny", "--rounds=1", f"--out={out}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = out.read_text().splitlines()
    assert "TINY: figures mean nothing" in lines[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    parts = ["tail"] * 6 + ["epoch, S2"] * 6
    assert [row[0] for row in rows] == [*parts, "overhead, S1", "overhead, S2"]
    assert all(row[-1].startswith("0 of ") for row in rows)
    assert float(rows[0][2].replace(",", "")) > 0
    accepted, drafted = rows[1][5].removesuffix(" (100%)").split(" of ")  # the response itself
    assert 0 < int(accepted) == int(drafted)
