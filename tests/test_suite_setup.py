"""What conftest and pyproject promise the rest of the suite."""

import pathlib
import re
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import pytest

from tests.conftest import QUICK, VIRTUAL_DEVICES, skipped_line
from tests.long_cases import LONG_CASES

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_eight_virtual_cpu_devices():
    assert jax.default_backend() == "cpu"
    assert jax.device_count() == VIRTUAL_DEVICES


def test_rank_promotion_raises():
    with pytest.raises(ValueError, match="rank"):
        jnp.ones((2, 3)) + jnp.ones(3)


@pytest.mark.parametrize("module", ["polaris_jax.rollout.sampler", "tests.rollout.test_sampler"])
def test_a_warning_from_our_own_modules_is_an_error(module):
    with pytest.raises(DeprecationWarning, match="old"):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)


def test_a_warning_from_elsewhere_is_not():
    with warnings.catch_warnings(record=True):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module="someone.elses")


def test_every_make_target_is_described_and_ci_runs_the_tests():
    makefile = (ROOT / "Makefile").read_text()
    described = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    wanted = {"demo", "demo-seeds", "test", "test-quick", "test-slow", "lint", "bench", "help"}
    assert wanted <= described
    ci = ROOT / ".ci" / "run"
    assert ci.stat().st_mode & 0o111
    assert ci.read_text().rstrip().endswith("exec make test")


def test_every_quick_name_is_a_file_or_folder_of_tests(request):
    names = {path.name for path in (ROOT / "tests").rglob("*") if path.name != "__pycache__"}
    assert names >= QUICK
    assert request.node.get_closest_marker("quick") is not None


@pytest.mark.parametrize("case", sorted(LONG_CASES))
def test_every_long_case_is_a_test(case):
    path, _, name = case.partition("::")
    assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / path).read_text()


GROUPED = """
import pytest

pytestmark = pytest.mark.xdist_group("one")

@pytest.fixture(scope="module")
def made():
    open("made", "a").write("x")

@pytest.mark.parametrize("number", range(6))
def test(made, number): ...
"""


def test_a_group_of_tests_stays_on_one_worker(tmp_path):
    """Else each worker makes what the group shares: minutes of the suite."""
    (tmp_path / "test_grouped.py").write_text(GROUPED)
    words = ["-n", "2", "--dist", "loadgroup", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert (tmp_path / "made").read_text() == "x"


@pytest.mark.parametrize(
    ("reasons", "line"),
    [
        ([], "skipped: 0"),
        (["root may write"], "skipped: 1 (1 root may write)"),
        (
            ["root may write", "Skipped: no torch", "no torch"],
            "skipped: 3 (2 no torch, 1 root may write)",
        ),
    ],
    ids=["none", "one", "three"],
)
def test_the_line_on_what_was_skipped(reasons, line):
    assert skipped_line(reasons) == line


def test_the_running_system_asks_for_neither_torch_nor_tensorflow():
    for name in ("requirements.txt", "requirements-jetstream.txt", "requirements-smollm2.txt"):
        lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
        packages = {re.split(r"[<>=!~\[ ]", line)[0].lower() for line in lines if line}
        assert packages.isdisjoint({"torch", "tensorflow", "seqio", "ray", "vllm"})
