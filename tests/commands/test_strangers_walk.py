"""A stranger's walk: their model and their set, from `init` to `report`, by the commands alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stranger import MODELS, SETS

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
PAIRS = [("qwen3", "gsm8k"), ("gguf", "verl"), ("qwen3", "trl"), ("gguf", "csv")]


def polaris(folder, *words):
    """What a command prints that must end well, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "polaris_jax", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(("model", "data"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_from_init_to_report(model, data, tmp_path):
    path, source = MODELS[model](tmp_path), SETS[data](tmp_path / data)
    out = polaris(tmp_path, "init", "my.py", f"--model={path}", f"--data={source}")
    assert "data: 40 problems of 40 rows" in out
    assert "responses: 64 of at most" in out
    lines = (tmp_path / "my.py").read_text().splitlines()
    commands = [line.split()[1:] for line in lines if line.startswith("    polaris ")]
    assert [words[0] for words in commands] == [
        *("prepare", "calibrate", "train", "evaluate", "report")  # nothing to probe: random weights
    ]
    short = {
        "calibrate": ["--config.calibrate.n=2", "--config.calibrate.preset=full"],
        "train": ["--config.stages[0].steps=1"],
    }
    fewer = ["--config.calibrate.max_response_tokens=16"]
    for words in commands:
        polaris(tmp_path, *words, *fewer, *short.get(words[0], []))
    workdir = tmp_path / "runs" / "my"
    for name in ("problems.parquet", "curated.parquet", "eval.json", "report.html"):
        assert (workdir / name).exists(), name
    steps = [
        json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [-1, 0]
    polaris(tmp_path, "train", "--config=my.py:quick", "--workdir=runs/quick")
