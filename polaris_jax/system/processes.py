"""Several processes as one run: start-up, facts to agree on, small gathers, a clean end.

Each host has one process, started by Slurm, GKE, a TPU pod or launch/local.sh. Every process runs
the same program. `gather_objects` shares what only one process knows (its responses, its signals).

A process with another mesh or another checkpoint cadence would wait in a collective that the others
never reach. A process with other problems or weights would silently change the training. So each
fact is compared as soon as it is known: the command line here (`run_facts`), problems in
`assemble`, which reads them, and weights in `models.weights.sources`, which finds them.

A lost process is noticed in two ways. A collective fails in Python (gloo, NCCL), and the text of
the error names the loss. Or the coordination service informs jax's runtime, which logs a page and
aborts (status 134) from its own thread, whatever Python is doing. `Guard` turns this abort, too,
into one line and status 1. jaxlib 0.10 has a callback for the loss but cannot pass the argument
(std::bad_cast), so the abort itself is caught.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import jax
import jaxlib
import numpy as np

import polaris_jax
from polaris_jax.config import ConfigError, RunConfig, config_fields

T = TypeVar("T")
DRAIN_S = 0.3  # time for the reader to get what was logged just before an abort
MAX_HELD_LINES = 500
MAX_REASON_CHARS = 200
_SIGNS = (
    "gloo",
    "nccl",
    "heartbeat",
    "coordination service",
    "connection closed by peer",
    "connection reset by peer",
)
_ENTRY = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w.]+):\d+\]")  # absl's log format
_PEER_FILES = ("coordination_service", "preemption_sync_manager", "client.h")
_FATAL = "distributed service detected fatal errors"


def tells_of_peer_loss(error: BaseException) -> bool:
    """True if the text of `error`, or of its cause, reports a lost process."""
    text = f"{error} {error.__cause__ or ''}".lower()
    return any(sign in text for sign in _SIGNS)


class Guard:
    """Filters the runtime's stderr from now to the end of the process.

    File descriptor 2 becomes a pipe. A thread forwards its text, except the runtime's entries about
    lost processes, which it holds back and prints only if an abort has another reason.
    `sys.stderr` still writes to the original file, past the pipe.
    """

    def __init__(self) -> None:
        self._out = os.dup(2)
        read_end, write_end = os.pipe()
        os.dup2(write_end, 2)
        os.close(write_end)
        sys.stderr = os.fdopen(self._out, "w", buffering=1, closefd=False)
        self._reason = ""
        self._held: deque[str] = deque(maxlen=MAX_HELD_LINES)
        self._ending = threading.Lock()
        threading.Thread(target=self._pass_on, args=(read_end,), daemon=True).start()
        # A C handler runs in the thread that aborts. Python's handlers wait for the main thread.
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        libc: Any = ctypes.CDLL(None)
        libc.signal(int(signal.SIGABRT), self._handler)

    def end(self, reason: str) -> NoReturn:
        """Writes the first caller's reason in one line and ends the process at once."""
        self._ending.acquire()  # never released: a second caller waits here for the end
        self._write(
            f"error: lost another process of this run ({reason[:MAX_REASON_CHARS]}); "
            "rerun the same command: it resumes from the last checkpoint\n"
        )
        os._exit(1)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads, or the disk is full: the end must come
            os.write(self._out, text.encode(errors="replace"))

    def _aborted(self, _: int) -> None:
        time.sleep(DRAIN_S)
        if self._reason:
            self.end(self._reason)
        self._write("".join(self._held))  # an abort for another reason continues

    def _pass_on(self, read_end: int) -> None:
        holding = False
        with os.fdopen(read_end, errors="replace") as lines:
            for line in lines:
                entry = _ENTRY.match(line)
                if entry:
                    holding = entry[1].startswith(_PEER_FILES)
                if not holding:  # an entry may have several lines
                    self._write(line)
                    continue
                self._held.append(line)
                if _FATAL in line:
                    self._reason = line.split("absl::Status: ")[-1].strip(" :\n")


COORDINATOR = "POLARIS_COORDINATOR"
NUM_PROCESSES = "POLARIS_NUM_PROCESSES"
PROCESS_ID = "POLARIS_PROCESS_ID"
AUTO = "POLARIS_DISTRIBUTED"
MIN_GATHER_BYTES = 1024
ABSENT = "absent"

_guard: Guard | None = None  # set by `initialize` if there are other processes


def initialize(*, heartbeat_timeout_s: int) -> None:
    """Joins the other processes of this run, if the environment declares any.

    `POLARIS_COORDINATOR`, `POLARIS_NUM_PROCESSES` and `POLARIS_PROCESS_ID` declare them
    (launch/local.sh sets these). `POLARIS_DISTRIBUTED=auto` lets jax find them (Slurm, GKE, pods).

    Args:
        heartbeat_timeout_s: seconds without a heartbeat after which a process counts as lost.

    Raises:
        ValueError: the coordinator is set, and one of the other two variables is not a number.
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
    """True in the first process, which writes files and prints."""
    return jax.process_index() == 0


def process_index() -> int:
    """Number of this process, from 0."""
    return jax.process_index()


def process_count() -> int:
    """Number of processes of this run."""
    return jax.process_count()


def gather_objects(value: Any) -> list[Any]:
    """The `value` of every process, in process order. Every process gets the list.

    Args:
        value: any JSON-able value.
    """
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    payload = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([payload.size], np.int32)))
    # The size is a power of two because every new size compiles a new program.
    room = max(MIN_GATHER_BYTES, 1 << (int(sizes.max()) - 1).bit_length())
    padded = np.zeros(room, np.uint8)
    padded[: payload.size] = payload
    rows = np.asarray(multihost_utils.process_allgather(padded))
    rows = rows.reshape(jax.process_count(), -1)
    return [
        json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.reshape(-1), strict=True)
    ]


def from_first(function: Callable[[], T]) -> T:
    """The first process's result, in all processes; the others do not call `function`."""
    return gather_objects(function() if is_first() else None)[0]


def any_process(flag: bool) -> bool:
    """True in all processes if `flag` is true in at least one."""
    return any(gather_objects(bool(flag)))


def several() -> bool:
    """True if this run has more than one process."""
    return jax.process_count() > 1


def agree(facts: Mapping[str, Any]) -> None:
    """Raises ConfigError if the processes of the run differ in `facts`.

    Call this before anything compiles.

    Args:
        facts: name -> a value that must be equal in all processes: a short JSON-able value, or a
            mapping of such values, which is compared field by field.

    Raises:
        ConfigError: processes differ. The text names the first fact that differs and the processes
            that hold each value.
    """
    told = disagreement(gather_objects(dict(facts)))
    if told:
        raise ConfigError(told)


def disagreement(facts_by_process: Sequence[Mapping[str, Any]]) -> str:
    """One line about the first fact in which processes differ; empty if they agree."""
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
    """The first key that a mapping lacks or has another value for; None if all mappings agree."""
    for name in dict.fromkeys(itertools.chain.from_iterable(mappings)):
        if any(name not in m or m[name] != mappings[0][name] for m in mappings):
            return name
    return None


def first_does(action: Callable[[], None], name: str) -> None:
    """Runs `action` in the first process while the others wait until it has ended.

    Args:
        action: the function, which may write files.
        name: name of the barrier; equal in every process.
    """
    if is_first():
        action()
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def end_after_peer_loss(error: BaseException) -> None:
    """Ends this process with one line and status 1 if `error` reports a lost process.

    Does nothing in a run of a single process, or for other errors.
    """
    if _guard is not None and tells_of_peer_loss(error):
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        _guard.end(first_line)


def leave(status: int) -> None:
    """Ends this process at once with `status`, if the run has other processes; else does nothing.

    This is for failures. An orderly exit would wait minutes for the other processes, which wait for
    this process in turn. When this process is gone, the others notice and end too.
    """
    if _guard is not None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)


# The one setting that may differ between hosts: the grader processes, which depend on the cores.
# All others are compared, including those that a resume may change, because they lead to different
# programs or collectives.
OF_A_HOST = ("reward.workers",)


def run_facts(config: RunConfig, command: Mapping[str, Any]) -> dict[str, Any]:
    """Facts by name in which the processes of one run must agree when they start.

    Args:
        config: config of this process.
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
