"""The library is compiled once a machine, mended when damaged; without a compiler all is XLA's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from polaris_jax.config import ConfigError
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams, native
from polaris_jax.rollout.native import build
from polaris_jax.rollout.programs.spec import program_spec
from polaris_jax.sharding import make_sampler_mesh
from tests.support.rollout.native_kernels import needs_compiler
from tests.support.rollout.rollout_cases import CONFIG, small_model

LOAD = """
from polaris_jax.rollout import native
try:
    print("loaded", native.load())
except native.BuildFailed as error:
    print("failed", error)
"""
COMPUTE = """
import jax.numpy as jnp
from polaris_jax.rollout import native
native.load()
weight_LDX = jnp.arange(12.0).reshape(1, 3, 4)
print(native.packed_product(0, jnp.ones((1, 3)), native.pack(weight_LDX), columns=4).tolist())
"""


def run(script: str, **environment: str | None) -> str:
    """What a fresh process says; None: without the variable."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={name: value for name, value in env.items() if value is not None},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def libraries(cache: Path) -> list[Path]:
    return sorted((cache / "polaris_jax").iterdir())


@needs_compiler
def test_it_is_compiled_once_and_mended_when_damaged(tmp_path):
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    assert run(COMPUTE, **cache) == "[[12.0, 15.0, 18.0, 21.0]]"
    (library,) = libraries(tmp_path)
    first = library.stat().st_mtime_ns
    assert run(LOAD, **cache).startswith("loaded ")
    assert library.stat().st_mtime_ns == first
    library.write_bytes(library.read_bytes()[:1000])
    assert run(COMPUTE, **cache) == "[[12.0, 15.0, 18.0, 21.0]]"
    assert libraries(tmp_path) == [library]


def test_all_that_is_compiled_names_the_library():
    included = {
        build.SOURCE.with_name(name)
        for source in build.SOURCES
        for name in re.findall(r'#include "(\w+\.h)"', source.read_text())
    }
    assert included
    assert {build.SOURCE, *included} == set(build.SOURCES)


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    out = run(COMPUTE, XDG_CACHE_HOME=str(tmp_path / "file"), TMPDIR=str(tmp_path / "tmp"))
    assert out == "[[12.0, 15.0, 18.0, 21.0]]"
    assert not list((tmp_path / "tmp").iterdir())


def compiler_that(tmp_path, before: str) -> str:
    """A compiler that runs a line of sh first, whose `$out` is the file to be made."""
    script = tmp_path / "wrapped"
    script.write_text(f'#!/bin/sh\nfor out; do :; done\n{before}\nexec c++ "$@"\n')
    script.chmod(0o755)
    return str(script)


@needs_compiler
def test_a_cache_without_room_is_done_without(tmp_path):
    full = "case $out in */polaris_jax/*) echo 'fatal error: no space left' >&2; exit 1;; esac"
    out = run(COMPUTE, XDG_CACHE_HOME=str(tmp_path), CXX=compiler_that(tmp_path, full))
    assert out == "[[12.0, 15.0, 18.0, 21.0]]"
    assert libraries(tmp_path) == []


@needs_compiler
def test_a_cache_that_no_code_is_loaded_from_is_done_without(tmp_path):
    noexec = """
import ctypes
real = ctypes.CDLL
def load(name, *args, **kwargs):
    if "/polaris_jax/kernels-" in str(name):
        raise OSError("failed to map segment from shared object")
    return real(name, *args, **kwargs)
ctypes.CDLL = load
"""
    assert run(noexec + COMPUTE, XDG_CACHE_HOME=str(tmp_path)) == "[[12.0, 15.0, 18.0, 21.0]]"
    assert len(libraries(tmp_path)) == 1


@needs_compiler
def test_a_compiler_may_have_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "c++")
    _, version = build._compiler()
    ccache = compiler_that(tmp_path, 'test "$1" = c++ && shift')
    monkeypatch.setenv("CXX", f"'{ccache}' c++ -DX")
    assert build._compiler() == ([ccache, "c++", "-DX"], version)
    monkeypatch.setenv("CXX", "c++ 'x")
    with pytest.raises(native.BuildFailed, match="CXX=c\\+\\+ 'x: No closing quotation"):
        build._compiler()


@needs_compiler
@pytest.mark.slow
def test_a_cache_that_others_may_write_to_is_not_used(tmp_path):
    assert run(LOAD, XDG_CACHE_HOME=str(tmp_path)).startswith("loaded ")
    assert (tmp_path / "polaris_jax").stat().st_mode & 0o777 == 0o700
    (library,) = libraries(tmp_path)
    library.unlink()
    (tmp_path / "polaris_jax").chmod(0o777)
    assert run(LOAD, XDG_CACHE_HOME=str(tmp_path)).startswith("loaded ")
    assert libraries(tmp_path) == []


@needs_compiler
def test_a_user_without_a_home_needs_none(tmp_path):
    # As in a container whose user has a number and no name.
    nameless = "import pwd\n\ndef none(uid):\n    raise KeyError(uid)\n\npwd.getpwuid = none\n"
    out = run(nameless + COMPUTE, HOME=None, XDG_CACHE_HOME=None, TMPDIR=str(tmp_path))
    assert out == "[[12.0, 15.0, 18.0, 21.0]]"
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_is_not_there_or_refuses_is_named(tmp_path):
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    assert run(LOAD, CXX="no-such-c++", **cache) == "failed CXX=no-such-c++: no such compiler"
    assert "no C++ compiler (c++, g++, clang++) on the path" in run(
        LOAD, PATH=str(tmp_path), CXX="", **cache
    )
    broken = tmp_path / "broken"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo broken 1.0 && exit 0\n'
        "echo 'kernels.cc:1: error: disk full' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    assert run(LOAD, CXX=str(broken), **cache) == (
        f"failed {broken}: kernels.cc:1: error: disk full"
    )
    assert not libraries(tmp_path)


def spec(mesh=None, **settings):
    return program_spec(CONFIG, SamplerConfig(**{"dtype": "float32", **settings}), mesh)


@needs_compiler
def test_auto_takes_them_where_they_serve_and_says_why_not():
    assert spec().native
    assert spec().kernels == f"native ({native.load()})"
    for settings, why in (
        ({"dtype": "float16"}, "float32 and bfloat16, the sampler's dtype is float16"),
        ({"layout": "pages"}, "layout='staged'"),
        (
            {"mesh": make_sampler_mesh(jax.devices()[:2], data=2)},
            "one device without a mesh, the sampler has a mesh of 2",
        ),
    ):
        chosen = spec(**settings)
        assert not chosen.native
        assert chosen.kernels.startswith("xla (")
        assert why in chosen.kernels
        with pytest.raises(ConfigError, match=f"rollout.attention='native': .*{why}"):
            spec(attention="native", **settings)
    assert spec(attention="xla").kernels == "xla (rollout.attention='xla')"


@needs_compiler
@pytest.mark.parametrize("there", [True, False], ids=["avx512_bf16", "none"])
def test_bfloat16_is_served_if_the_cpu_multiplies_it(monkeypatch, there):
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: there)
    chosen = spec(dtype="bfloat16")
    assert chosen.native == there
    if not there:
        assert "xla (rollout.attention='native': multiplies bfloat16 by AVX512" in chosen.kernels


@needs_compiler
def test_a_sampler_that_asks_for_them_finds_dtype_and_pool_itself():
    sizes = SamplerConfig(attention="native", num_pages=0, slots=2, max_len=32)
    sampler = Sampler(small_model(), sizes)
    assert sampler.kernels.startswith("native (")
    assert len(sampler.generate([[1, 2, 3]], SamplingParams(max_tokens=4))[0][0].token_ids) == 4


def test_without_a_compiler_auto_is_xla_and_native_is_refused(monkeypatch):
    def fail():
        raise native.BuildFailed("no C++ compiler")

    monkeypatch.setattr(native, "load", fail)
    assert not spec().native
    assert spec().kernels == "xla (rollout.attention='native': cannot be compiled: no C++ compiler)"
    with pytest.raises(
        ConfigError, match=r"'native': cannot be compiled: no C\+\+ compiler; use auto"
    ):
        spec(attention="native")
    groups = Sampler(small_model(), SamplerConfig(max_len=32)).generate(
        [[1, 2, 3]], SamplingParams(max_tokens=4)
    )
    assert len(groups[0][0].token_ids) == 4
