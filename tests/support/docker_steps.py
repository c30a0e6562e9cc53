"""The Dockerfile's steps, as data, and run without Docker in a fresh virtual environment.

    python -m tests.support.docker_steps --target cpu --root DIR

A stage's absolute paths lie below DIR. `python` is DIR/venv's: of the running Python's version, as
the image's. Left out: USER, and the steps that need root (apt-get, useradd). Needs the network.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).resolve().parents[2]
NEEDS_ROOT = re.compile(r"\b(apt-get|useradd)\b")


@dataclasses.dataclass(frozen=True)
class Step:
    """One instruction: its word, such as COPY, and what follows."""

    word: str
    rest: str


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of the build: its name, the image or stage below it, and its steps."""

    name: str
    base: str
    steps: tuple[Step, ...]


def stages(text: str) -> dict[str, Stage]:
    """{name: stage} of a Dockerfile's text, in order."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            found[name] = Stage(name, base, ())
        else:
            last = next(reversed(found.values()))
            found[last.name] = dataclasses.replace(last, steps=(*last.steps, Step(word, rest)))
    return found


def complete(found: dict[str, Stage], target: str) -> tuple[Step, ...]:
    """The steps of a stage and of all stages below it, the lowest first."""
    stage = found[target]
    return (*(complete(found, stage.base) if stage.base in found else ()), *stage.steps)


def copied(steps: tuple[Step, ...]) -> list[tuple[str, list[str], str]]:
    """(stage or "", sources, destination) of each COPY."""
    made = []
    for step in steps:
        if step.word == "COPY":
            words = step.rest.split()
            stage = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else ""
            made.append((stage, words[:-1], words[-1]))
    return made


def run(found: dict[str, Stage], target: str, root: pathlib.Path) -> None:
    """Runs the steps of a target below a folder, those of the stages that it copies from before.

    Raises:
        CalledProcessError: a step failed.
    """
    steps = complete(found, target)
    for stage, _, _ in copied(steps):
        if stage:
            run(found, stage, root)
    if not (root / "venv").exists():
        venv.create(root / "venv", with_pip=True)
    env = {"PATH": f"{root}/venv/bin:{os.environ['PATH']}", "HOME": str(root / "home")}
    here = root
    for step in steps:
        if step.word == "WORKDIR":
            here = root / step.rest.lstrip("/")
            here.mkdir(parents=True, exist_ok=True)
        elif step.word in ("ENV", "ARG"):
            env |= dict(pair.split("=", 1) for pair in step.rest.split())
        elif step.word == "COPY":
            ((stage, sources, place),) = copied((step,))
            target_place = root / place.lstrip("/") if place.startswith("/") else here / place
            for source in sources if not stage else ():
                _copy(ROOT / source, target_place, is_folder=place.endswith("/"))
        elif step.word == "RUN" and not NEEDS_ROOT.search(step.rest):
            print(f"RUN {step.rest}", flush=True)
            command = re.sub(r"(?<![\w.])/(wheels|source)\b", rf"{root}/\1", step.rest)
            subprocess.run(["bash", "-euc", command], cwd=here, env=env, check=True)


def _copy(source: pathlib.Path, place: pathlib.Path, *, is_folder: bool) -> None:
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(source, place, dirs_exist_ok=True, ignore=ignored)
        return
    folder = place if is_folder or place.is_dir() else place.parent
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, folder / source.name)


def main() -> int:
    """Runs the script; its exit code."""
    parser = argparse.ArgumentParser(description="the Dockerfile's steps in a fresh venv")
    parser.add_argument("--target", default="cpu", help="a stage of the Dockerfile")
    parser.add_argument("--root", required=True, type=pathlib.Path, help="an empty folder")
    asked = parser.parse_args()
    found = stages((ROOT / "Dockerfile").read_text())
    if asked.target not in found:
        parser.error(f"--target={asked.target}: there are {', '.join(found)}")
    if asked.root.exists() and any(asked.root.iterdir()):
        parser.error(f"--root={asked.root}: it is not empty; name another folder")
    run(found, asked.target, asked.root.resolve())
    print(f"the command is {asked.root}/venv/bin/polaris")
    return 0


if __name__ == "__main__":
    sys.exit(main())
