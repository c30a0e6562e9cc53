"""The user's cache folder for machine code: compiled kernels and compiled programs.

Code in it is loaded and run, so it is the user's alone. What it was compiled for is part of each
name: a home directory may serve machines of several kinds.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import stat
import sys
import time
from pathlib import Path

FOLDER = "polaris_jax"
MOST_BYTES = 4 << 30  # of compiled programs; the least recently used ones leave
UNFINISHED_S = 60.0  # after which a program without its time of use was cut off by a kill
LOCK_S = 10.0


def cache_folder() -> Path:
    """The user's cache folder; it need not be there yet.

    Raises:
        OSError: there is none, as for a container's user without a name or $HOME.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / FOLDER
    except RuntimeError as error:
        raise OSError(str(error)) from None


def require_own(folder: Path) -> None:
    """Checks that nobody else can put code there: names are no secret.

    Raises:
        OSError: the folder belongs to another user, or everybody may write to it.
    """
    found = folder.stat()
    if found.st_uid not in (os.getuid(), 0) or found.st_mode & stat.S_IWOTH:
        raise PermissionError(errno.EPERM, "others may write to it", str(folder))


def cpu_features() -> str:
    """What -march=native depends on: one line of names."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return f"{platform.machine()} {platform.processor()}"


def program_cache(*versions: str) -> Path:
    """The folder of compiled programs, made if it is missing, without what a kill has cut off.

    Args:
        versions: what the programs depend on, beside the CPU's features and Python's version.

    Raises:
        OSError: it cannot be made, or others may write to it.
    """
    base = cache_folder()
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_own(base)
    texts = (*versions, platform.python_version(), cpu_features())
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    folder = base / "programs" / digest
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_own(folder)
    _sweep(folder)
    return folder


def _sweep(folder: Path) -> None:
    """Deletes programs that a kill has cut off: jax would fail at each of them for good.

    jax writes a program, and then its time of use, under a lock.
    """
    from filelock import FileLock, Timeout

    with contextlib.suppress(Timeout), FileLock(folder / ".lockfile", timeout=LOCK_S):
        for program in folder.glob("*-cache"):
            used = program.with_name(program.name.removesuffix("-cache") + "-atime")
            with contextlib.suppress(FileNotFoundError):
                if not used.exists() and time.time() - program.stat().st_mtime > UNFINISHED_S:
                    program.unlink()
