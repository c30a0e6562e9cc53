"""What goes to timing.jsonl: seconds a phase, and the counts of sampler and graders."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polaris_jax.config import CheckpointSection
from polaris_jax.metrics.throughput import memory_metrics, update_throughput
from polaris_jax.reward import Grader
from polaris_jax.reward.protocol import GRADER_STATS
from polaris_jax.rollout import Sampler
from polaris_jax.rollout.live import CompileCounter
from polaris_jax.system import processes

SAMPLER_STATS = (
    *("slot_occupancy", "row_waste", "live_rows_min", "live_rows_max", "pages_peak"),
    *("preemptions", "moves", "prefix_hits", "prefix_query_tokens", "prefix_hit_tokens"),
    *("prefix_hit_rate", "compiles"),
    *("verify_calls", "draft_tokens", "draft_accepted", "draft_rate", "draft_steps_saved"),
    *("verify_calls_by_rows", "draft_tokens_by_rows", "draft_accepted_by_rows"),
    "draft_steps_saved_by_rows",
)


class StepClock:
    """Collects a step's line of timing.jsonl; `line` resets all counts.

    Attributes:
        compile_counter: a context manager; inside it, compiles of this thread are counted.
    """

    def __init__(self) -> None:
        self.compile_counter = CompileCounter()
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

    def begin_stage(self, sampler: Sampler, grader: Grader) -> None:
        """Resets the counts at a stage's first step: the stage change's probes do not count.

        Args:
            sampler: the stage's sampler; its counts are set to zero.
            grader: the grader of this process.
        """
        sampler.reset_stats()
        self._graded = Counter(grader.stats())
        self.compile_counter.count = 0

    def count_update(self, *, tokens: int, flops: float) -> None:
        """Adds an update's response tokens and model FLOPs to this step."""
        self._update_tokens += tokens
        self._update_flops += flops

    def line(self, sampler: Sampler, grader: Grader, *, devices: Sequence[Any]) -> dict[str, Any]:
        """The step's line of timing.jsonl; resets the counts. All processes call it together.

        Args:
            sampler: the stage's sampler; its counts are set to zero.
            grader: the grader of this process.
            devices: devices of the update.
        """
        stats = sampler.stats()
        sampler.reset_stats()
        graded = Counter(grader.stats())
        counts = processes.gather_objects([dict(graded - self._graded), self.compile_counter.count])
        shares = [share for share, _ in counts]
        grading = sum((Counter(share) for share in shares), Counter())
        seconds = self._seconds
        line: dict[str, Any] = {f"time/{name}_s": value for name, value in seconds.items()}
        if rollout_s := seconds.get("rollout"):
            line["throughput/rollout_tokens_per_s"] = stats["response_tokens"] / rollout_s
        if self._update_tokens and (update_s := seconds.get("update")):
            line["throughput/update_tokens_per_s"] = self._update_tokens / update_s
        line["time/weight_sync_s"] = stats["weight_sync_s"]
        line["throughput/weight_sync_bytes"] = stats["weight_sync_bytes"]
        line |= {f"sampler/{name}": stats[name] for name in SAMPLER_STATS}
        line |= {f"reward/{name}": grading[name] for name in GRADER_STATS}
        line["compiles/step"] = max(compiles for _, compiles in counts)  # the process with the most
        line["reward/graded_by_process"] = [share.get("graded", 0) for share in shares]
        line |= update_throughput(self._update_flops, self._seconds["update"], devices)
        self._seconds = defaultdict(float)
        self._graded = graded
        self._update_tokens, self._update_flops, self.compile_counter.count = 0, 0.0, 0
        self._lines += 1
        return line | memory_metrics()

    def grace_warning(self, line: dict[str, Any], section: CheckpointSection) -> str:
        """`beyond_grace` of the newest line: once a run, and not for the first, which compiles."""
        text = "" if self._warned or self._lines == 1 else beyond_grace(line, section)
        self._warned = self._warned or bool(text)
        return text


def beyond_grace(line: Mapping[str, Any], section: CheckpointSection) -> str:
    """A warning if a step's update and save outlast the grace of a preemption; else "".

    A SIGTERM is answered between two phases: in a rollout or a held-out score at once, in an update
    when it has ended.

    Args:
        line: a line of timing.jsonl.
        section: `config.checkpoint`.
    """
    needed_s = line.get("time/update_s", 0.0) + line.get("time/save_s", 0.0)
    if needed_s <= section.grace_s:
        return ""
    return (
        f"update and checkpoint took {needed_s:.0f} s, over checkpoint.grace_s="
        f"{section.grace_s:g}: a host taken away in them loses the steps since its last checkpoint "
        f"(checkpoint.every_steps={section.every_steps})"
    )
