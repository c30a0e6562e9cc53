"""Several processes as one run: start-up, small object gathers, and a clean end when a peer dies.

One process a host, started by Slurm, GKE, a TPU pod or launch/local.sh. Every process runs the same
program; what one of them alone knows (its responses, its signals) goes through `gather_objects`.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from polaris_jax.config import ConfigError
from polaris_jax.system.peer_loss import Guard, tells_of_peer_loss

COORDINATOR = "POLARIS_COORDINATOR"
NUM_PROCESSES = "POLARIS_NUM_PROCESSES"
PROCESS_ID = "POLARIS_PROCESS_ID"
AUTO = "POLARIS_DISTRIBUTED"
MIN_GATHER_BYTES = 1024
ABSENT = "absent"

_guard: Guard | None = None  # from `initialize` on, where there are other processes


def initialize(*, heartbeat_timeout_s: int) -> None:
    """Joins the other processes of this run, when the environment says that there are any.

    `POLARIS_COORDINATOR`, `POLARIS_NUM_PROCESSES` and `POLARIS_PROCESS_ID` name them
    (launch/local.sh sets these); `POLARIS_DISTRIBUTED=auto` lets jax find them (Slurm, GKE, pods).

    Raises:
        ValueError: one of the three variables is missing or no number.
    """
    global _guard
    if os.environ.get(AUTO) == "auto":
        _guard = Guard()
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_timeout_s)
        return
    if COORDINATOR not in os.environ:
        return
    numbers = {}
    for name in (NUM_PROCESSES, PROCESS_ID):
        value = os.environ.get(name, "")
        if not value.isdigit():
            raise ValueError(f"{name}={value!r}: with {COORDINATOR} set it must be a number")
        numbers[name] = int(value)
    if numbers[NUM_PROCESSES] > 1:
        _guard = Guard()
        jax.distributed.initialize(
            os.environ[COORDINATOR],
            numbers[NUM_PROCESSES],
            numbers[PROCESS_ID],
            heartbeat_timeout_seconds=heartbeat_timeout_s,
        )


def is_first() -> bool:
    """True in the process that writes files and prints."""
    return jax.process_index() == 0


def gather_objects(value: Any) -> list[Any]:
    """Every process's JSON-able `value`, in process order, in all of them."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    payload = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([payload.size], np.int32)))
    # A power of two: every new size is a new program to compile.
    room = max(MIN_GATHER_BYTES, 1 << (int(sizes.max()) - 1).bit_length())
    padded = np.zeros(room, np.uint8)
    padded[: payload.size] = payload
    rows = np.asarray(multihost_utils.process_allgather(padded))
    rows = rows.reshape(jax.process_count(), -1)
    return [
        json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.reshape(-1), strict=True)
    ]


def any_process(flag: bool) -> bool:
    """True in all processes when it is in one of them."""
    return any(gather_objects(bool(flag)))


def several() -> bool:
    """Whether this run has more processes than this one."""
    return jax.process_count() > 1


def agree(facts: Mapping[str, Any]) -> None:
    """Returns when every process of the run says the same; call it before anything compiles.

    Args:
        facts: by name, what must be alike for one program to run in all: short JSON-able values,
            or mappings of them, which are compared field by field.

    Raises:
        ConfigError: names the first fact that differs and the processes that hold each value.
    """
    told = disagreement(gather_objects(dict(facts)))
    if told:
        raise ConfigError(told)


def disagreement(facts_by_process: Sequence[Mapping[str, Any]]) -> str:
    """One line on the first fact in which processes differ; empty when none does."""
    name = _first_difference(facts_by_process)
    if name is None:
        return ""
    values, label = [facts.get(name, ABSENT) for facts in facts_by_process], ""
    if all(isinstance(value, Mapping) for value in values):
        field = _first_difference(values)
        assert field is not None
        values, label = [repr(fields.get(field, ABSENT)) for fields in values], f"{field}="
    holders: dict[str, list[str]] = {}
    for process, value in enumerate(values):
        holders.setdefault(f"{label}{value}", []).append(str(process))
    told = "; ".join(f"{value} in process {', '.join(who)}" for value, who in holders.items())
    return (
        f"{name} differs between the processes of this run: {told}; start all of them with one "
        "command, one checkout and the same files"
    )


def _first_difference(mappings: Sequence[Mapping[str, Any]]) -> str | None:
    """The first key that some mapping lacks or holds another value of; None where there is none."""
    for name in dict.fromkeys(itertools.chain.from_iterable(mappings)):
        if any(name not in m or m[name] != mappings[0][name] for m in mappings):
            return name
    return None


def first_does(action: Callable[[], None], name: str) -> None:
    """Runs `action` in the first process while the others wait for its end.

    Args:
        action: what writes files.
        name: of the barrier; the same in every process.
    """
    if is_first():
        action()
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def end_after_peer_loss(error: BaseException) -> None:
    """Ends this process with one line and status 1 when `error` says that a peer is gone.

    In a single process, or for other errors, it does nothing.
    """
    if _guard is not None and tells_of_peer_loss(error):
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        _guard.end(first_line)


def leave(status: int) -> None:
    """Ends this process at once with `status`, if it is one of several; else does nothing.

    For failures: an orderly exit waits minutes for the others, which wait for this process in turn.
    They see it gone and end too.
    """
    if _guard is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
