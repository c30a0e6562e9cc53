"""Compiles the kernels for this very CPU, keeps the library for later processes, and loads it.

The library lies in the user's cache, named by a hash of all that decides what is in it (source,
headers' version, compiler, C library, flags and the CPU's features: a home directory may serve
several machines) and by its own checksum. No home, or a cache that cannot be written or that others
may write to, is no error: the library is then compiled for this process alone.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path

import jax
import jaxlib

from polaris_jax.system.cache import cache_folder, cpu_features, require_own

SOURCE = Path(__file__).with_name("kernels.cc")
SOURCES = (SOURCE, *sorted(SOURCE.parent.glob("*.h")))
ZEROS, PACK = "polaris_zeros", "polaris_pack"
PRODUCT, ATTENTION = "polaris_packed_product", "polaris_attend_staged"
DRAW = "polaris_draw"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared")
COMPILE_TIMEOUT_S = 300


class BuildFailed(RuntimeError):
    """There are no native kernels on this machine; the message says why."""


def load() -> str:
    """Compiles the kernels if no earlier process has, loads them, and registers them with jax.

    Returns:
        The compiler's name and version.

    Raises:
        BuildFailed: no C++ compiler, or it refused; the same in every call of a process.
    """
    return _loaded()[0]


def multiplies_bfloat16() -> bool:
    """True if the kernels multiply bfloat16 numbers, by AVX512-BF16 of CPU and compiler.

    Raises:
        BuildFailed: see `load`.
    """
    return _loaded()[1]


def _loaded() -> tuple[str, bool]:
    outcome = _load()
    if isinstance(outcome, BuildFailed):
        raise BuildFailed(str(outcome))
    return outcome


@functools.cache
def _load() -> tuple[str, bool] | BuildFailed:
    """(the compiler's version, True if products of bfloat16 are there), or why there is nothing."""
    try:
        compiler, version = _compiler()
        return version, _register(_library(compiler, version))
    except BuildFailed as error:
        return error
    except OSError as error:
        return BuildFailed(f"compiling or loading: {error}")


def _compiler() -> tuple[str, str]:
    """(path, first line of its version) of $CXX or else of the first compiler on the path."""
    asked = os.environ.get("CXX")
    for name in (asked,) if asked else COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return path, _run([path, "--version"]).splitlines()[0]
    if asked:
        raise BuildFailed(f"CXX={asked}: no such compiler")
    raise BuildFailed(f"no C++ compiler ({', '.join(COMPILERS)}) on the path")


def _library(compiler: str, version: str) -> Path:
    """The compiled library in the cache, or in a folder of its own."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    flags = [*FLAGS, "-march=native" if x86 else "-mcpu=native"]
    texts = (jaxlib.__version__, version, *platform.libc_ver(), cpu_features(), *flags)
    sources = (source.read_text() for source in SOURCES)
    digest = hashlib.sha256("\0".join((*texts, *sources)).encode()).hexdigest()[:24]
    command = [compiler, *flags, "-isystem", jax.ffi.include_dir(), str(SOURCE), "-o"]
    try:
        base = cache_folder()
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_own(base)
        for library in base.glob(f"kernels-{digest}-*.so"):
            if library == _named(base, digest, library):  # complete: a torn file would crash us
                return library
            library.unlink()
        with tempfile.TemporaryDirectory(dir=base) as folder:
            made = Path(folder) / "kernels.so"
            _run([*command, str(made)])
            library = _named(base, digest, made)
            # Renamed only when complete: another process may load the file at any time.
            os.replace(made, library)
        return library
    except OSError:
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        library = Path(folder) / "kernels.so"
        _run([*command, str(library)])
        return library


def _named(base: Path, digest: str, library: Path) -> Path:
    """Where a library belongs, by what it was compiled from and by what is in it."""
    return base / f"kernels-{digest}-{zlib.crc32(library.read_bytes()):08x}.so"


def _register(library: Path) -> bool:
    loaded = ctypes.CDLL(str(library))
    for name in (ZEROS, PACK, PRODUCT, ATTENTION, DRAW):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(loaded, name)), platform="cpu")
    return bool(loaded.polaris_multiplies_bfloat16())


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
            timeout=COMPILE_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line.lower()]
        raise BuildFailed(f"{command[0]}: {(lines or ['it failed without a word'])[0]}") from None
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"{command[0]}: took longer than {COMPILE_TIMEOUT_S} s") from None
    return done.stdout
