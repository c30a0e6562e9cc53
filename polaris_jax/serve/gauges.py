"""The server's numbers, in the text format that Prometheus scrapes."""

from __future__ import annotations

import bisect
from collections import Counter
from typing import Any

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
# Name here, kind, name in `Sampler.stats`, help.
SAMPLER = (
    ("pages_used", "gauge", "pages_used", "pages with a reference"),
    ("pages_idle", "gauge", "pages_idle", "unused pages that hold a prefix"),
    ("preemptions_total", "counter", "preemptions", "rows preempted because pages ran out"),
    ("prefix_hit_tokens_total", "counter", "prefix_hit_tokens", "tokens found in cached pages"),
    ("prefix_query_tokens_total", "counter", "prefix_query_tokens", "tokens looked for in pages"),
    ("sampler_prompt_tokens_total", "counter", "prompt_tokens", "tokens of submitted prompts"),
    ("sampler_response_tokens_total", "counter", "response_tokens", "tokens sampled"),
    ("compiles_total", "counter", "compiles", "programs compiled while serving"),
)


class Histogram:
    """Counts of durations, in seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Counts one duration."""
        self._counts[bisect.bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> list[str]:
        """The histogram's samples."""
        found, total = [], 0
        for bound, count in zip([*map(str, SECONDS), "+Inf"], self._counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*found, f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]


class Gauges:
    """What the server counts. Used by the event loop alone.

    Attributes:
        requests: number of answers by (path, HTTP status).
        responses: number of ended responses by finish reason.
        left: number of clients that left before their answer was complete.
        updates: number of weight updates by outcome, "taken" or "failed".
        first_token_s: seconds from a request to its first token.
        request_s: seconds of complete requests that sampled.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.responses: Counter[str] = Counter()
        self.updates: Counter[str] = Counter()
        self.left = 0
        self.first_token_s, self.request_s = Histogram(), Histogram()

    def text(
        self,
        stats: dict[str, Any],
        *,
        slots: int,
        unfinished: int,
        version: int,
        device_failures: int,
    ) -> str:
        """All numbers, a line each.

        Args:
            stats: `Sampler.stats`.
            slots: number of sequences decoded at once.
            unfinished: number of responses that are sampled or wait.
            version: version of the weights.
            device_failures: number of steps that a device error broke off.
        """
        live = sum(stats["live_rows"])
        single = [
            ("slots", "gauge", slots, "sequences decoded at once"),
            ("responses_live", "gauge", live, "responses in slots"),
            ("responses_waiting", "gauge", max(0, unfinished - live), "responses without a slot"),
            ("weights_version", "gauge", version, "number of the present weights"),
            ("device_failures_total", "counter", device_failures, "steps that failed"),
            ("clients_left_total", "counter", self.left, "clients that left early"),
            *((name, kind, stats[key], text) for name, kind, key, text in SAMPLER),
        ]
        lines = []
        for name, kind, value, text in single:
            lines += [*_head(name, kind, text), f"polaris_{name} {value}"]
        lines += _head("requests_total", "counter", "answers by path and HTTP status")
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'polaris_requests_total{{path="{path}",status="{status}"}} {count}')
        for name, label, counts, text in (
            ("responses_total", "finish_reason", self.responses, "ended responses"),
            ("weight_updates_total", "outcome", self.updates, "weight updates"),
        ):
            lines += _head(name, "counter", text)
            lines += [f'polaris_{name}{{{label}="{k}"}} {n}' for k, n in sorted(counts.items())]
        for name, histogram, text in (
            ("first_token_seconds", self.first_token_s, "from a request to its first token"),
            ("request_seconds", self.request_s, "of requests that sampled"),
        ):
            lines += [*_head(name, "histogram", text), *histogram.lines(f"polaris_{name}")]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP polaris_{name} {text}", f"# TYPE polaris_{name} {kind}"]
