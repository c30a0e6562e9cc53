"""The Markdown that `benchmarks/sampler.py` prints of a workload."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from peers.record import Row, ours_beside

from .driver import Side
from .workloads import Workload, lengths


@dataclasses.dataclass
class Result:
    """What a side did on one workload.

    Attributes:
        side: which.
        version: version of the side's system.
        load_s: imports, weights and whatever is compiled before the first request.
        first_s: the first call, which compiles the rest; not among the rounds.
        rounds: the side's answers, one a round.
        logprob_error: largest and mean difference to the trainer's log-probs in float32 over a few
            responses, in nats.
        failure: the last line of what went wrong, or "".
        libraries: its allocator and OpenMP runtimes, by `side.libraries`.
    """

    side: Side
    version: str = ""
    load_s: float = 0.0
    first_s: float = 0.0
    rounds: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    logprob_error: tuple[float, float] | None = None
    failure: str = ""
    libraries: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """Of weights and products."""
        return self.side.settings.get("dtype", "float32")

    @property
    def system(self) -> str:
        """Of the side."""
        return self.side.system

    @property
    def allocator(self) -> str:
        """What the process had loaded."""
        return self.libraries.get("allocator", "unknown")

    @property
    def name(self) -> str:
        """Of the side."""
        return self.side.name

    @property
    def rates(self) -> list[float]:
        """Useful response tokens a second, one a round."""
        return [r["useful_tokens"] / r["seconds"] for r in self.rounds]

    def median(self, key: str) -> float | None:
        """Median of a figure over the rounds; None where the side does not know it."""
        found = [r[key] for r in self.rounds if key in r]
        return statistics.median(found) if found else None


def title(workload: Workload, model: str) -> list[str]:
    """What the workload is."""
    dealt = lengths(workload)
    first, last = workload.prompt_tokens
    prefix = f"{workload.shared_prefix} shared and " if workload.shared_prefix else ""
    return [
        f"## {workload.name}: {model}, {workload.prompts} prompts x {workload.samples}",
        "",
        f"Prompts of {prefix}{first} to {last} tokens; forced lengths, lognormal of median "
        f"{workload.median:g} and sigma {workload.sigma}, {min(dealt)} to {max(dealt)} tokens, "
        f"{sum(dealt):,} in all. One static batch would waste "
        f"{1 - sum(dealt) / (len(dealt) * max(dealt)):.0%}.",
        "",
    ]


def table(results: Sequence[Result]) -> list[str]:
    """One line a side that ran, then the sides that failed."""
    lines = [
        "| side | version | dtype | allocator | useful tokens/s | spread | tokens/CPU s | "
        "peak GiB | waste | load s | first call s | log-prob error (mean) |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if not result.rounds:
            continue
        rates, waste = result.rates, result.median("row_waste")
        cpu = statistics.median(r["useful_tokens"] / r["cpu_s"] for r in result.rounds)
        peak = max(r["peak_bytes"] for r in result.rounds) / 2**30
        error = "unknown"
        if result.logprob_error:
            error = "{:.1e} ({:.1e})".format(*result.logprob_error)
        lines.append(
            f"| {result.name} | {result.version} | {result.dtype} | {result.allocator} | "
            f"{statistics.median(rates):,.0f} | "
            f"{min(rates):,.0f} to {max(rates):,.0f} | {cpu:,.0f} | {peak:.2f} | "
            f"{'unknown' if waste is None else f'{waste:.1%}'} | {result.load_s:.1f} | "
            f"{result.first_s:.1f} | {error} |"
        )
    lines.append("")
    for line in failures("", results):
        lines += [line, ""]
    return lines


def failures(workload: str, results: Sequence[Result]) -> list[str]:
    """A line for each side that failed."""
    where = f"{workload}, " if workload else ""
    return [
        f"{where}{result.name}: failed after {len(result.rounds)} rounds: {result.failure}"
        for result in results
        if result.failure
    ]


def tried(results: Sequence[Result]) -> list[str]:
    """The points of a grid, each tried once."""
    lines = ["| tried once | useful tokens/s | allocator |", "|---|---|---|"]
    for result in results:
        if result.rounds:
            lines.append(f"| {result.name} | {result.rates[0]:,.0f} | {result.allocator} |")
    return [*lines, "", *failures("", results), ""]


def rows(workload: str, results: Sequence[Result], *, candidate: bool = False) -> list[Row]:
    """The rows of a record, with our rate over each side's, as in `ratios`."""
    made = []
    for result in results:
        if not result.rounds:
            continue
        pairs = [] if candidate else _pairs(_ours(results, result), result)
        settings = {k: v for k, v in result.side.settings.items() if k != "dtype"}
        if result.side.preload:
            settings["preload"] = "+".join(result.side.preload)
        made.append(
            Row(
                workload=workload,
                side=result.name,
                system=result.side.system,
                version=result.version,
                dtype=result.dtype,
                allocator=result.allocator,
                settings=settings,
                seconds=statistics.median(r["seconds"] for r in result.rounds),
                tokens_per_s=statistics.median(result.rates),
                ratio=statistics.median(pairs) if pairs else None,
                peak_bytes=max(r["peak_bytes"] for r in result.rounds),
                candidate=candidate,
            )
        )
    return made


def _ours(results: Sequence[Result], other: Result) -> Result | None:
    """The side of ours, among those that ran, that another is compared with."""
    return ours_beside([results[0], *(r for r in results[1:] if r.rounds)], other)


def _pairs(ours: Result | None, other: Result) -> list[float]:
    """Our rate over the other's by rounds: what slows the machine slows both."""
    return [a / b for a, b in zip(ours.rates, other.rates, strict=False)] if ours else []


def ratios(results: Sequence[Result]) -> list[str]:
    """Our rate over each other side's, by rounds."""
    lines = []
    for other in results:
        ours = _ours(results, other)
        if ours and (pairs := _pairs(ours, other)):
            lines += [
                f"{ours.name} / {other.name}: {statistics.median(pairs):.2f} times the tokens/s "
                f"({', '.join(f'{p:.2f}' for p in pairs)}).",
                "",
            ]
    return lines


def own_counts(results: Sequence[Result]) -> list[str]:
    """Our sampler's own counts in the last round."""
    lines = []
    for result in results:
        if result.rounds and "stats" in result.rounds[-1]:
            stats = {
                name: f"{value:.3f}" if isinstance(value, float) else value
                for name, value in result.rounds[-1]["stats"].items()
                if not name.startswith("weight_sync")
            }
            lines += [
                f"{result.name}, last round: {', '.join(f'{k} {v}' for k, v in stats.items())}.",
                "",
            ]
    return lines


def same_tokens(results: Sequence[Result]) -> list[str]:
    """How many responses are the same on sides with the same seeds.

    Sides compute in other shapes and round otherwise. A draw whose uniform number lies on the
    border of two tokens then falls to either side: of a model that finds 8,192 tokens about equally
    likely, that is 3 draws in 10,000.
    """
    digests = [[d for r in result.rounds for d in r["digests"]] for result in results]
    digests = [each for each in digests if each]
    if len(digests) < 2:
        return []
    equal = sum(len(set(each)) == 1 for each in zip(*digests, strict=True))
    return [f"Same tokens: {equal} of {len(digests[0])} responses.", ""]
