"""Wall clock of a training step: seconds a phase, and what sampler and graders did meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from polaris_jax.config import CheckpointSection
from polaris_jax.metrics.throughput import memory_metrics, update_throughput
from polaris_jax.reward import Grader
from polaris_jax.rollout import Sampler
from polaris_jax.rollout.compile_counter import CompileCounter
from polaris_jax.run.step_records import beyond_grace, timing_line
from polaris_jax.system import processes


class StepClock:
    """Collects what timing.jsonl tells of a step; each line starts the next one from zero.

    Attributes:
        compiles: to be entered while steps run; counts what their thread compiles, from one line to
            the next.
    """

    def __init__(self) -> None:
        self.compiles = CompileCounter()
        self._seconds: dict[str, float] = defaultdict(float)
        self._graded: Counter[str] = Counter()
        self._update_tokens = 0
        self._update_flops = 0.0
        self._lines = 0
        self._warned = False

    @contextlib.contextmanager
    def timer(self, name: str) -> Iterator[None]:
        """Adds the seconds of its body to `time/{name}_s` of this step."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - began_s

    def begin_at(self, update_tokens: int) -> None:
        """A resumed run has trained on so many tokens before."""
        self._update_tokens = update_tokens

    def begin_stage(self, sampler: Sampler, grader: Grader) -> None:
        """What an entry's probes sampled and graded is no step's: its counts begin here.

        Args:
            sampler: of the stage; its counts are set to zero.
            grader: of this process.
        """
        sampler.reset_stats()
        self._graded = Counter(grader.stats())
        self.compiles.count = 0

    def count_update(self, flops: float) -> None:
        """Adds the model FLOPs of an update of this step."""
        self._update_flops += flops

    def line(
        self, sampler: Sampler, grader: Grader, *, update_tokens: int, devices: Sequence[Any]
    ) -> dict[str, Any]:
        """A line of timing.jsonl; every process of the run calls it together.

        Args:
            sampler: its counts are set to zero.
            grader: of this process.
            update_tokens: response tokens that the run has trained on so far.
            devices: of the update.
        """
        stats = sampler.stats()
        sampler.reset_stats()
        graded = Counter(grader.stats())
        told = processes.gather_objects([dict(graded - self._graded), self.compiles.count])
        shares = [share for share, _ in told]
        line = timing_line(
            self._seconds,
            stats,
            update_tokens=update_tokens - self._update_tokens,
            grading=sum((Counter(share) for share in shares), Counter()),
        )
        line["compiles/step"] = max(compiles for _, compiles in told)  # of the process with most
        line["reward/graded_by_process"] = [share.get("graded", 0) for share in shares]
        line |= update_throughput(self._update_flops, self._seconds["update"], devices)
        self._seconds = defaultdict(float)
        self._graded, self._update_tokens = graded, update_tokens
        self._update_flops, self.compiles.count = 0.0, 0
        self._lines += 1
        return line | memory_metrics()

    def grace_warning(self, line: dict[str, Any], section: CheckpointSection) -> str:
        """`beyond_grace` of the newest line; told once, and not of a first step, which compiles."""
        text = "" if self._warned or self._lines == 1 else beyond_grace(line, section)
        self._warned = self._warned or bool(text)
        return text
