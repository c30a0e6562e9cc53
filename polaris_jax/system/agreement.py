"""What all processes of a run must hold alike, told and compared before anything compiles.

A process with another mesh or another checkpoint cadence would wait in a collective that the others
never reach, and one with other problems or weights would train on what nobody asked for. So each
fact is compared as soon as it is known, in the one function through which every command gets it:
the command line where jax starts, problems where they are read, weights where they are found.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jaxlib
from etils import epath

import polaris_jax
from polaris_jax.config import RunConfig, config_fields
from polaris_jax.data.problems import problem_set_hash
from polaris_jax.models.weights.sources import WANTED, resolve
from polaris_jax.records import Problem
from polaris_jax.system import processes
from polaris_jax.system.files import AnyPath

# The one setting of a host alone: its grader processes, as many as its cores allow. All others are
# compared, those that a resume may change among them: they lead to other programs or collectives.
OF_A_HOST = ("reward.workers",)
SAMPLES = 16
SAMPLE_BYTES = 1 << 16


def run_facts(config: RunConfig, command: Mapping[str, Any]) -> dict[str, Any]:
    """What two processes of one run say alike when they start, by name.

    Args:
        config: of the process.
        command: name, workdir and own flags of the command, JSON-able.
    """
    fields = {name: v for name, v in config_fields(config).items() if name not in OF_A_HOST}
    return {
        "polaris_jax": polaris_jax.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "command": dict(command),
        "config": fields,
    }


def agree_on_run(config: RunConfig, command: Mapping[str, Any]) -> None:
    """Returns where all processes run one command under one config and the same versions.

    Raises:
        ConfigError: names the first fact and field that differ, the values and who holds them.
    """
    processes.agree(run_facts(config, command))


def agree_on_problems(name: str, problems: Sequence[Problem]) -> None:
    """Returns where all processes have read the same problems; raises as `agree_on_run`.

    Args:
        name: of the set, for the error.
        problems: as read, before any is left out for its length.
    """
    processes.agree({name: f"{problem_set_hash(problems)} ({len(problems)} problems)"})


def agree_on_weights(path: AnyPath, *, name: str = "base model") -> None:
    """Returns where all processes find the same model at `path`; raises as `agree_on_run`.

    Args:
        path: HF directory, Hub id, GGUF file or a step's directory.
        name: for the error.
    """
    if processes.several():  # alone there is nothing to read files for
        processes.agree({name: weights_digest(resolve(path))})


def weights_digest(place: epath.Path) -> str:
    """16 hex digits of a model's files: their names, sizes and a sample of their bytes.

    The sample is spread over each file: a tuned model may share its first and last tensors with the
    one that it comes from. A checkpoint's step is told by its manifest, which has every checksum.
    """
    files = [place]
    if place.is_dir():
        named = [p for p in place.iterdir() if any(fnmatch.fnmatch(p.name, w) for w in WANTED)]
        files = sorted(named, key=lambda path: path.name)
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(json.dumps([path.name, size]).encode())
            for i in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
