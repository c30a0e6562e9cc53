"""Compiled programs are kept for later processes, for the user alone, and mended after a kill."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polaris_jax.system.cache import UNFINISHED_S, program_cache

ROOT = Path(__file__).resolve().parents[1]
# Compiles one program and prints where programs are kept and how often one came from there.
BODY = """
import json, jax, jax.numpy as jnp
from polaris_jax.commands import run
run.MIN_COMPILE_S = 0.0
hits = []
jax.monitoring.register_event_listener(
    lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None
)
run.keep_programs()
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 8))).block_until_ready()
enabled = jax.config.jax_enable_compilation_cache
print(json.dumps([jax.config.jax_compilation_cache_dir if enabled else None, len(hits)]))
"""


def compile_once(home, **env):
    own = {k: v for k, v in os.environ.items() if not k.startswith("JAX_") and k != "XLA_FLAGS"}
    own |= {"XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu", **env}
    done = subprocess.run(
        [sys.executable, "-c", BODY], cwd=ROOT, env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "rror" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def test_a_later_process_finds_what_an_earlier_one_has_compiled(tmp_path):
    folder, hits = compile_once(tmp_path)
    assert hits == 0
    programs = list(Path(folder).glob("*-cache"))
    assert programs
    assert Path(folder).is_relative_to(tmp_path / "polaris_jax" / "programs")
    for path in (Path(folder), tmp_path / "polaris_jax"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert compile_once(tmp_path) == [folder, len(programs)]


def test_a_program_that_a_kill_has_cut_off_is_compiled_again(tmp_path):
    folder, _ = compile_once(tmp_path)
    for program in Path(folder).glob("*-cache"):
        program.write_bytes(program.read_bytes()[:100])
        program.with_name(program.name.removesuffix("-cache") + "-atime").unlink()
        long_ago = time.time() - 2 * UNFINISHED_S
        os.utime(program, (long_ago, long_ago))
    assert compile_once(tmp_path) == [folder, 0]
    assert compile_once(tmp_path)[1] > 0


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path):
    (tmp_path / "polaris_jax").mkdir()
    (tmp_path / "polaris_jax").chmod(0o777)
    assert compile_once(tmp_path) == [None, 0]


@pytest.mark.parametrize("variable", ["POLARIS_COMPILE_CACHE", "JAX_COMPILATION_CACHE_DIR"])
def test_a_named_folder_counts(variable, tmp_path):
    own = tmp_path / "own"
    assert compile_once(tmp_path / "home", **{variable: str(own)})[0] == str(own)
    assert not (tmp_path / "home").exists()


def test_none_is_kept_if_told_so(tmp_path):
    assert compile_once(tmp_path, POLARIS_COMPILE_CACHE="0") == [None, 0]
    assert not (tmp_path / "polaris_jax").exists()


def test_other_versions_and_other_features_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = program_cache("1.0")
    assert program_cache("1.0") == first
    assert program_cache("1.1") != first
    monkeypatch.setattr("polaris_jax.system.cache.cpu_features", lambda: "flags: none")
    assert program_cache("1.0") != first


def test_a_program_that_is_being_written_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = program_cache("1.0")
    (folder / "new-cache").write_bytes(b"x")
    program_cache("1.0")
    assert (folder / "new-cache").exists()
