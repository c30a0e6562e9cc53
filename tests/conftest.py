"""What every test runs under: eight virtual CPU devices, strict ranks, checked annotations.

Set before jax is imported, for this process and for the processes that tests start.

`POLARIS_TYPECHECK=0` turns the annotation checks off (to time something without them).
`POLARIS_XLA=full` compiles as users do, with all of XLA's optimizations. `make test-slow` sets it.
"""

import collections
import contextlib
import gc
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

VIRTUAL_DEVICES = 8
MAPPINGS, MOST_MAPPINGS = pathlib.Path("/proc/self/maps"), 30_000

# Files and folders, anywhere under tests/, whose tests are `quick` unless they are slow: what needs
# a host only, and one step of training. `make test-quick` runs these.
QUICK = {
    "batch", "benchmarks", "config", "data", "evaluate", "explore", "guide", "launch", "metrics",
    "report", "reward", "run", "stages",
    "test_array_checks.py", "test_config_file.py", "test_docs.py", "test_english.py",
    "test_entry.py", "test_files.py", "test_groups.py", "test_imports.py",
    "test_mistakes.py", "test_one_step.py", "test_overrides.py", "test_packaging.py",
    "test_plan_mistakes.py",
    "test_progress.py", "test_records.py", "test_signals.py",
    "test_stage_change.py", "test_step_rules.py", "test_suite_setup.py", "test_train.py",
    "test_visit.py",
}  # fmt: skip

# Compilation is three quarters of the suite. Without optimizations and without the newer emitter
# of fusions it takes half as long, and the programs compute the same up to the last bits. Commands
# that tests start in processes of their own are compiled as users' are.
QUICK_COMPILES = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def _are_known(flags):
    """Whether this version of XLA has the flags: it ends a process that gives it others."""
    env = {**os.environ, "XLA_FLAGS": flags}
    words = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(words, env=env, capture_output=True, check=False).returncode == 0


os.environ["JAX_PLATFORMS"] = "cpu"
_flag = "--xla_force_host_platform_device_count"
if _flag not in os.environ.get("XLA_FLAGS", ""):  # else a worker, or the user has decided
    _flags = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={VIRTUAL_DEVICES}"
    if os.environ.get("POLARIS_XLA") != "full" and _are_known(QUICK_COMPILES):
        _flags += f" {QUICK_COMPILES}"
    os.environ["XLA_FLAGS"] = _flags.strip()
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the network would be a mistake
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Tests compile the same programs again and again, most of all in runs that are killed and started
# anew. The session has one cache of them, for its workers and for the processes that tests start.
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_own_cache = ""
if _CACHE not in os.environ:
    _own_cache = os.environ[_CACHE] = tempfile.mkdtemp(prefix="polaris_jax_compiled_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

if os.environ.get("POLARIS_TYPECHECK", "1") != "0":
    from jaxtyping import install_import_hook

    from tests.support.array_checks import annotated_modules

    # The hook wraps every function of a module. Over all modules that was a third of the suite.
    install_import_hook(annotated_modules(), "tests.support.array_checks.check_arrays")

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.long_cases import LONG_CASES  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


def is_quick(path):
    """Whether a file of tests is named in QUICK, or a folder that it is in."""
    here = pathlib.Path(__file__).parent
    return path.is_relative_to(here) and not QUICK.isdisjoint(path.relative_to(here).parts)


@pytest.hookimpl(tryfirst=True)  # before -m picks tests
def pytest_collection_modifyitems(items):
    """Marks the tests of QUICK, and the long cases as slow."""
    for item in items:
        if item.nodeid.removeprefix("tests/") in LONG_CASES:
            item.add_marker("slow")
        if is_quick(item.path) and item.get_closest_marker("slow") is None:
            item.add_marker("quick")


def pytest_ignore_collect(collection_path, config):
    """Spares `-m quick` the import of all other files."""
    quick_alone = config.option.markexpr == "quick" and collection_path.suffix == ".py"
    return True if quick_alone and not is_quick(collection_path) else None


def skipped_line(reasons):
    """What was skipped and why, most frequent first: `skipped: 3 (2 no torch, 1 root user)`."""
    reasons = [reason.removeprefix("Skipped: ") for reason in reasons]
    counts = collections.Counter(reasons).most_common()
    why = ", ".join(f"{count} {reason}" for reason, count in counts)
    return f"skipped: {len(reasons)} ({why})" if reasons else "skipped: 0"


@pytest.hookimpl(wrapper=True, tryfirst=True)  # behind all other parts of the summary
def pytest_terminal_summary(terminalreporter):
    """Ends the report with a line on what was skipped."""
    result = yield
    reports = terminalreporter.stats.get("skipped", [])
    terminalreporter.write_line(skipped_line([report.longrepr[2] for report in reports]))
    return result


def pytest_unconfigure():
    """The process that made the cache, which outlives the workers, takes it away."""
    shutil.rmtree(_own_cache, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Clears jax's caches once a process holds many compiled programs.

    Each takes several memory mappings, and Linux allows a process 65,530 of them by default.
    Beyond that LLVM cannot compile: "Cannot allocate memory".
    """
    yield
    with contextlib.suppress(OSError):  # no Linux
        if len(MAPPINGS.read_bytes().splitlines()) > MOST_MAPPINGS:
            jax.clear_caches()
            gc.collect()


@pytest.fixture
def bucket(monkeypatch):
    """An object store of the test's own, behind gs://."""
    from tests.support import fake_bucket

    bucket = fake_bucket.Bucket()
    fake_bucket.mount(monkeypatch, bucket)
    yield bucket
    bucket.close()
