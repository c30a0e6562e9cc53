"""A benchmark's figures as a file: what was measured, with which settings, and our speed over it.

    python benchmarks/peers/record.py docs/results/NAME.json    a table, and lines for the README

`benchmarks/sampler.py` and `benchmarks/update.py` write one with --record, `benchmarks/check.py`
compares them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Protocol, TypeVar

ROOT = Path(__file__).resolve().parents[2]
OURS = "polaris_jax"
ANCHOR = "bare products"
FORMS = ("mode", "batches")  # what tells a system's sides apart that are no points of a grid
LEAST_SHARE = 0.95  # of a recorded ratio
VECTORS = (
    "amx_bf16",
    "avx512_bf16",
    "avx512f",
    "avx2",
)  # the best first, as /proc/cpuinfo has them
S = TypeVar("S", bound="Compared")


@dataclasses.dataclass(frozen=True)
class Row:
    """One side on one workload.

    Attributes:
        workload: its name and what it is, such as "S1: random Qwen3 ...".
        side: name of the side, unique in the workload.
        system: "polaris_jax", "vllm", "trl", ..., or `ANCHOR`.
        version: version of the system.
        dtype: dtype of the weights and of the matrix products.
        allocator: memory allocator of the process, found by its loaded libraries.
        settings: everything else that was set.
        seconds: median of a round or a step.
        tokens_per_s: median of useful response tokens, or of an update's real tokens.
        ratio: our tokens/s (of `ours_beside`) over this side's, the median over rounds measured in
            turns; None: there is nothing to compare with.
        peak_bytes: peak resident memory.
        candidate: True if the side was only tried, once, to find the best of a grid.
    """

    workload: str
    side: str
    system: str
    version: str
    dtype: str
    allocator: str
    settings: dict[str, Any]
    seconds: float
    tokens_per_s: float
    ratio: float | None
    peak_bytes: int
    candidate: bool = False

    @property
    def compared_by(self) -> tuple[Any, ...]:
        """What a ratio is compared by: another run may find another point of a grid the best."""
        logprobs = bool(self.settings.get("logprobs", True))
        forms = [self.settings.get(name) for name in FORMS]
        return self.workload, self.system, self.dtype, logprobs, *forms

    @property
    def key(self) -> tuple[str, str]:
        """What tells a row from the others of its record."""
        return self.workload, self.side


@dataclasses.dataclass(frozen=True)
class Record:
    """The rows of one run of a benchmark.

    Attributes:
        benchmark: "sampler", "update" or "check".
        date: ISO.
        commit: short, of this repository.
        cpu: the processor's name.
        threads: threads of every side.
        rows: what was measured.
        notes: lines about growth, failures and grids.
        vectors: the best of `VECTORS` that the processor has, which its name may not say; "": not
            known, as in earlier records.
    """

    benchmark: str
    date: str
    commit: str
    cpu: str
    threads: int
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    vectors: str = ""

    @property
    def machine(self) -> str:
        """Processor, its vector units and the threads, in words."""
        units = f" with {self.vectors}" if self.vectors else ""
        return f"{self.cpu}{units}, {self.threads} threads"

    def is_of(self, other: Record) -> bool:
        """True if ratios of two records may be compared: both are of one kind of machine."""
        vectors = self.vectors == other.vectors or not (self.vectors and other.vectors)
        return vectors and (self.cpu, self.threads) == (other.cpu, other.threads)

    def write(self, path: Path) -> None:
        """Writes the record, in place of what was there."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def new_record(
    benchmark: str, *, threads: int, rows: Iterable[Row], notes: Iterable[str] = ()
) -> Record:
    """A record of now, this commit and this machine."""
    return Record(
        benchmark=benchmark,
        date=date.today().isoformat(),
        commit=commit(),
        cpu=cpu_name(),
        threads=threads,
        rows=tuple(rows),
        notes=tuple(notes),
        vectors=vector_units(),
    )


def read(path: Path) -> Record:
    """A record from a file.

    Raises:
        SystemExit: the file is missing, or no record.
    """
    try:
        fields = json.loads(path.read_text())
        rows = tuple(Row(**row) for row in fields.pop("rows"))
        return Record(**fields | {"notes": tuple(fields.get("notes", ()))}, rows=rows)
    except (OSError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"error: {path}: no record of a benchmark ({error}); write one with --record")


def commit() -> str:
    """This repository's commit, or "unknown"."""
    asked = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def cpu_name() -> str:
    """The processor's name, its architecture and the number of its cores."""
    name = ""
    if (info := Path("/proc/cpuinfo")).exists():
        lines = info.read_text().splitlines()
        name = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    return f"{name or platform.processor() or 'unknown'} ({platform.machine()}, {os.cpu_count()})"


def vector_units() -> str:
    """The best of `VECTORS` that this processor has; "" if it has none, or does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((set(x.split()) for x in lines if x.startswith("flags")), set())
    return next((name for name in VECTORS if name in flags), "")


def worse(recorded: Record, found: Record, *, least: float = LEAST_SHARE) -> list[str]:
    """A line for each ratio that fell below `least` of what is recorded, and for each that is gone.

    Rows that were only tried for a grid do not count.
    """
    lines = []
    for row, old, now in _fallen(recorded, found, least):
        what = f"{row.workload}, {OURS} / {row.side}"
        if now is None:
            lines.append(f"{what}: recorded {old:.3f}, not measured now")
        else:
            lines.append(
                f"{what}: {now:.3f}, {now / old:.1%} of the recorded {old:.3f}; at least "
                f"{least:.0%} is wanted"
            )
    return lines


def fallen(recorded: Record, found: Record, *, least: float = LEAST_SHARE) -> list[Row]:
    """The recorded rows whose ratio was measured and fell below `least` of what is recorded."""
    return [row for row, _, now in _fallen(recorded, found, least) if now is not None]


def _fallen(
    recorded: Record, found: Record, least: float
) -> Iterator[tuple[Row, float, float | None]]:
    """A recorded row, its ratio, and today's that is lower or not there."""
    new = {row.compared_by: row.ratio for row in found.rows if not row.candidate}
    for row in recorded.rows:
        if row.candidate or row.ratio is None or row.system == OURS:
            continue
        now = new.get(row.compared_by)
        if now is None or now < least * row.ratio:
            yield row, row.ratio, now


def unrecorded(recorded: Record, found: Record) -> list[Row]:
    """The rows of `found` with a ratio that nothing is recorded for."""
    known = {row.compared_by for row in recorded.rows if not row.candidate}
    rows = (row for row in found.rows if not row.candidate and row.ratio is not None)
    return [row for row in rows if row.system != OURS and row.compared_by not in known]


class Compared(Protocol):
    """A side of a benchmark."""

    @property
    def system(self) -> str: ...
    @property
    def dtype(self) -> str: ...


def ours_beside(sides: Sequence[S], side: S) -> S | None:
    """The side of ours that another is compared with; None: it is that side, or there is none.

    It is the first side. A peer is compared with ours of its dtype, if there is one.
    """
    first = sides[0]
    if first.system != OURS or side is first:
        return None
    alike = [s for s in sides if (s.system, s.dtype) == (OURS, side.dtype)]
    return alike[0] if alike and side.system != OURS else first


def table(record: Record) -> list[str]:
    """Markdown: every row with its dtype, allocator and settings."""
    lines = [
        f"# {record.benchmark}, {record.date}, commit `{record.commit}`, {record.cpu}, "
        f"{record.threads} threads",
        "",
        "| workload | side | version | dtype | allocator | settings | seconds | tokens/s | "
        "ours / this | peak GiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record.rows:
        settings = ", ".join(f"{k}={v}" for k, v in row.settings.items()) or "defaults"
        ratio = "tried once" if row.candidate else "" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(
            f"| {row.workload} | {row.side} | {row.version} | {row.dtype} | {row.allocator} | "
            f"{settings} | {row.seconds:.3g} | {row.tokens_per_s:,.0f} | {ratio} | "
            f"{row.peak_bytes / 2**30:.2f} |"
        )
    return [*lines, "", *(f"- {note}" for note in record.notes)]


def readme_lines(record: Record, file: str) -> list[str]:
    """The README's rows: ours beside each system's fastest side, of our dtype and of any."""
    lines = []
    for workload in dict.fromkeys(row.workload for row in record.rows):
        rows = [r for r in record.rows if r.workload == workload and not r.candidate]
        ours = next((r for r in rows if r.side == OURS), None)
        if ours is None:
            continue
        parts = []
        for system in dict.fromkeys(r.system for r in rows if r.system not in (OURS, ANCHOR)):
            sides = [r for r in rows if r.system == system and r.ratio is not None]
            alike = _fastest(r for r in sides if r.dtype == ours.dtype)
            any_dtype = _fastest(sides)
            for row in _unique((alike, any_dtype)):
                parts.append(f"{row.ratio:.2f} times {row.side} ({row.dtype}, {row.allocator})")
        if parts:
            lines.append(f"| {workload} | {'; '.join(parts)} | [{record.benchmark}]({file}) |")
    return lines


def _fastest(rows: Iterable[Row]) -> Row | None:
    return max(rows, key=lambda row: row.tokens_per_s, default=None)


def _unique(rows: Sequence[Row | None]) -> list[Row]:
    return list({row.key: row for row in rows if row is not None}.values())


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/peers/record.py docs/results/NAME.json")
    record = read(Path(sys.argv[1]))
    print("\n".join([*table(record), "", *readme_lines(record, sys.argv[1])]))


if __name__ == "__main__":
    main()
