"""Compiles the kernels for this very CPU, keeps the library for later processes, and loads it.

The library lies in the user's cache, named by a hash of all that decides what is in it (source,
headers' version, compiler, C library, flags and the CPU's features: a home directory may serve
several machines) and by its own checksum. No home, a cache that cannot be written, is full, or that
others may write to, or one that no code is loaded from (noexec) is no error: the library is then
compiled for this process alone.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shlex
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


class _TookTooLong(BuildFailed):
    """The compiler did not end; another attempt would take as long."""


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
        try:
            return version, _register(_cached(compiler, version))
        except _TookTooLong:
            raise
        except (BuildFailed, OSError):  # a full disk is a failure of the compiler's
            return version, _register(_private(compiler))
    except BuildFailed as error:
        return error
    except OSError as error:
        return BuildFailed(f"compiling or loading: {error}")


def _compiler() -> tuple[list[str], str]:
    """$CXX, which may have arguments, or the first compiler on the path: command and version."""
    asked = os.environ.get("CXX", "").strip()
    try:
        commands = [shlex.split(asked)] if asked else [[name] for name in COMPILERS]
    except ValueError as error:
        raise BuildFailed(f"CXX={asked}: {error}") from None
    for name, *arguments in commands:
        path = shutil.which(name)
        if path is not None:
            command = [path, *arguments]
            return command, _run([*command, "--version"]).splitlines()[0]
    if asked:
        raise BuildFailed(f"CXX={asked}: no such compiler")
    raise BuildFailed(f"no C++ compiler ({', '.join(COMPILERS)}) on the path")


def _flags() -> list[str]:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return [*FLAGS, "-march=native" if x86 else "-mcpu=native"]


def _compile(compiler: list[str], library: Path) -> None:
    command = [*compiler, *_flags(), "-isystem", jax.ffi.include_dir(), str(SOURCE)]
    _run([*command, "-o", str(library)])


def _cached(compiler: list[str], version: str) -> Path:
    """The compiled library in the cache.

    Raises:
        BuildFailed, OSError: the compiler refused, or the cache cannot be used.
    """
    flags = [*_flags(), *compiler[1:]]
    texts = (jaxlib.__version__, version, *platform.libc_ver(), cpu_features(), *flags)
    sources = (source.read_text() for source in SOURCES)
    digest = hashlib.sha256("\0".join((*texts, *sources)).encode()).hexdigest()[:24]
    base = cache_folder()
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_own(base)
    for library in base.glob(f"kernels-{digest}-*.so"):
        if library == _named(base, digest, library):  # complete: a torn file would crash us
            return library
        library.unlink()
    with tempfile.TemporaryDirectory(dir=base) as folder:
        made = Path(folder) / "kernels.so"
        _compile(compiler, made)
        library = _named(base, digest, made)
        # Renamed only when complete: another process may load the file at any time.
        os.replace(made, library)
    return library


def _private(compiler: list[str]) -> Path:
    """The library, compiled for this process alone."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = Path(folder) / "kernels.so"
    _compile(compiler, library)
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
        raise _TookTooLong(f"{command[0]}: took longer than {COMPILE_TIMEOUT_S} s") from None
    return done.stdout
