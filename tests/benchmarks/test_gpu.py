"""The benchmark of one GPU: its smoke test on a CPU, and that no part is lost by a later one."""

import os
import pathlib
import re
import subprocess
import sys

import gpu
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_what_is_measured_is_written_before_what_may_run_out_of_memory(monkeypatch, tmp_path):
    def out_of_memory(*args):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(gpu, "decode", lambda *args: (0.5, ["| decode | 500 ms |"]))
    monkeypatch.setattr(gpu, "planned", lambda *args: (0.25, 2.0))
    monkeypatch.setattr(gpu, "update", out_of_memory)
    out = tmp_path / "gpu.md"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", f"--out={out}"])
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        gpu.main()
    assert "| decode | 500 ms |\n" in out.read_text()
    assert "| decode step: measured / planned | 0.5 s / 0.25 s = 2 |\n" in out.read_text()


@pytest.mark.slow
def test_the_smoke_test_runs_every_part_beside_the_plan(tmp_path):
    out = tmp_path / "gpu.md"
    ran = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--tiny", f"--out={out}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]
    text = out.read_text()
    assert text == ran.stdout
    for what in ("decode step", "update"):
        row = rf"\| {what}: measured / planned \| (\S+) s / (\S+) s = \S+ \|"
        found = re.search(row, text)
        assert found, text
        assert all(float(seconds) > 0 for seconds in found.groups())
    assert "| attention chunked, forward + backward" in text
