"""Requirements as names and bounds; whether the oldest allowed versions are the installed ones.

    python -m tests.support.lower_bounds [--write FILE]

Exit status 1 if a package of requirements.txt is newer than its lower bound: then the bound cannot
be installed beside the others, and is to be raised. `make test-oldest` asks. With --write it writes
the versions that are installed here as pip's constraints, which `make constraints` does.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import pathlib
import re
import sys

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEAD = """\
# Versions that `make test` passed with, on Linux and Python 3.11, for whoever wants the same:
# pip install -c constraints.txt . in a checkout. `make constraints` rewrites this file from .venv.
"""
# Not of the running system, nor of its tests: torch and accelerators' libraries, and tools.
LEFT_OUT = re.compile(r"(torch|nvidia-|jax-cuda|libtpu|triton|cuda-|pip$|polaris|google-jetstream)")


def requirements(text: str) -> dict[str, Requirement]:
    """{name in lower case: requirement} of a requirements file's text."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {(made := Requirement(line)).name.lower(): made for line in lines if line}


def lower_bound(requirement: Requirement) -> Version:
    """The least version that a requirement allows."""
    return min(Version(s.version) for s in requirement.specifier if s.operator in (">=", "=="))


def too_new(text: str) -> list[str]:
    """One line for each package that is installed newer than its lower bound."""
    found = []
    for name, requirement in requirements(text).items():
        version = Version(importlib.metadata.version(name))
        if version > (least := lower_bound(requirement)):
            found.append(f"{name}: {version} is installed, {least} cannot be: raise the bound")
    return found


def installed() -> str:
    """The versions that are installed, as constraints."""
    found = {
        re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower(): one.version
        for one in importlib.metadata.distributions()
    }
    lines = [f"{name}=={found[name]}" for name in sorted(found) if not LEFT_OUT.match(name)]
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """Runs the script; its exit code."""
    parser = argparse.ArgumentParser(description="are the oldest allowed versions installed?")
    parser.add_argument("--write", default="", help="writes the installed versions to a file")
    asked = parser.parse_args()
    if asked.write:
        pathlib.Path(asked.write).write_text(installed())
        return 0
    lines = too_new((ROOT / "requirements.txt").read_text())
    print("\n".join(lines) or "each package is the oldest that is allowed")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
