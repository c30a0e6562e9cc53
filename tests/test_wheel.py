"""The wheel, outside the checkout: it has the configs, and a command runs on one by its name."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*words, **options):
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_installed_package_has_its_configs(tmp_path):
    source = tmp_path / "source"
    run(
        "-c",
        f"import shutil; shutil.copytree({str(ROOT)!r}, {str(source)!r}, symlinks=True, "
        "ignore=shutil.ignore_patterns('.git', '.venv', 'workdirs', '*.egg-info', 'build'))",
    )
    run("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source))
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        names = archive.namelist()
    shipped = {Path(n).name for n in names if n.startswith("polaris_jax/shipped_configs/")}
    assert {path.name for path in (ROOT / "configs").rglob("*.py")} <= shipped
    assert {"three_numbers.jsonl", "tiny_cpu.json"} <= shipped
    assert "polaris_jax/py.typed" in names
    parts = ("page.css", "page.js", "figures.js", "responses.js")  # of report.html
    assert {f"polaris_jax/report/{part}" for part in parts} <= set(names)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    where = "import polaris_jax; print(polaris_jax.__file__)"
    assert run("-P", "-c", where, cwd=elsewhere, env=env).startswith(str(installed))
    words = ["-P", "-m", "polaris_jax", "prepare", "--config=tiny_cpu", "--workdir=run"]
    assert "320" in run(*words, cwd=elsewhere, env=env)
    assert (elsewhere / "run" / "problems.parquet").exists()
