"""What grows over many `generate` calls: the rules on made-up samples, and a short soak."""

import os
import pathlib
import subprocess
import sys

import pytest
import soak

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAT = soak.Sample(100, 500e6, 7, 9, 12, 30, 1000, 1.0)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rss_bytes", 511e6, "resident memory grew by 2.2%"),
        ("compiles", 8, "compiles grew from 7 to 8"),
        ("threads", 10, "threads grew from 9 to 10"),
        ("files", 13, "files grew from 12 to 13"),
        ("arrays", 31, "arrays grew from 30 to 31"),
    ],
)
def test_growth_is_a_breach(field, value, words):
    (line,) = soak.breaches([FLAT, FLAT._replace(**{field: value})])
    assert words in line


def test_flat_or_falling_is_none():
    assert soak.breaches([FLAT, FLAT._replace(rss_bytes=509e6, files=11, calls=200)]) == []


@pytest.mark.slow
def test_a_short_soak():
    ran = subprocess.run(
        [sys.executable, "benchmarks/soak.py", "--calls=300", "--warm=100", "--rows=4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]
    assert "nothing grew over 200 calls" in ran.stdout
