"""Side processes from the outside: start, ask, let wait, end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from . import environments
from .environments import PeerFailed, last_line
from .workloads import Workload

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
OURS = "polaris_jax"


@dataclasses.dataclass(frozen=True)
class Side:
    """One line of a table.

    Attributes:
        name: name of the line.
        system: `OURS`, or a name of `environments.PACKAGES`.
        settings: what the side's script makes of it.
        preload: libraries that its process loads before all others, by the beginning of their
            file names.
    """

    name: str
    system: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    preload: tuple[str, ...] = ()

    @property
    def script(self) -> Path:
        """Run by the system's interpreter."""
        return HERE / f"{self.system.removesuffix('_jax')}_side.py"


def job_of(workload: Workload, weights: Path, *, threads: int) -> dict[str, Any]:
    """What a side loads for a workload.

    Args:
        workload: the workload.
        weights: directory of the model's weights.
        threads: CPU threads of the side.
    """
    return {
        "weights": str(weights),
        "threads": threads,
        "slots": workload.num_requests,
        "max_len": workload.max_len,
        "longest_prompt": workload.longest_prompt,
    }


class Process:
    """A side that has loaded; while nobody asks, all its processes are stopped and take no CPU.

    Attributes:
        side: which.
        load_s: seconds until it had loaded.
        libraries: its allocator and OpenMP runtimes, by `side.libraries`.
    """

    def __init__(self, side: Side, python: str, job: dict[str, Any], *, timeout_s: float):
        """Starts and loads.

        Raises:
            PeerFailed: it ended or did not answer in time.
        """
        self.side = side
        self._timeout_s = timeout_s
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `end`
        threads = str(job["threads"])
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(ROOT) if side.system == OURS else "",
            **environments.preloading(side.preload, Path(python)),
        }
        self._child = subprocess.Popen(
            [python, "-u", str(side.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            loaded = self.ask({**job, "settings": side.settings})
        except BaseException:
            self.end()
            raise
        self.load_s = float(loaded["load_s"])
        self.libraries = {name: loaded[name] for name in ("allocator", "openmp")}

    def ask(self, line: Any) -> dict[str, Any]:
        """The answer to one line.

        Raises:
            PeerFailed: it ended or did not answer in time.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._signal(signal.SIGCONT)
        try:
            self._child.stdin.write(json.dumps(line) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise PeerFailed(self._last_words()) from None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            if not selector.select(self._timeout_s):
                raise PeerFailed(f"no answer within {self._timeout_s:.0f} s")
        answer = self._child.stdout.readline()
        if not answer:
            raise PeerFailed(self._last_words())
        self._signal(signal.SIGSTOP)
        return json.loads(answer)

    def end(self) -> None:
        """Kills the side and what it started."""
        self._signal(signal.SIGKILL)
        self._child.wait()
        self._log.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)

    def _last_words(self) -> str:
        code = self._child.wait()
        self._log.seek(0)
        return f"ended with {code}: {last_line(self._log.read())}"
