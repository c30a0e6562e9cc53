"""The rules of `polaris prepare` in their order, over rows that lie on disk.

    read -> row rules -> equal texts -> long prompts -> benchmarks -> near duplicates -> caps -> ids

Each row has one fate: it stays, or one reason why it does not. Nothing depends on the order of rows
but the order of those that stay, which is that of the sources' names and of their rows.
"""

from __future__ import annotations

import dataclasses
import functools
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polaris_jax.data.filters import renamed_id
from polaris_jax.data.prepare.choose import (
    Facts,
    first_of_each_text,
    over_cap,
    repeats,
    taken_ids,
)
from polaris_jax.data.prepare.grams import GramHasher
from polaris_jax.data.prepare.near import band_keys, near_duplicates, shingles
from polaris_jax.data.prepare.overlap import BenchmarkIndex, Hit
from polaris_jax.data.prepare.rules import row_rules
from polaris_jax.data.prepare.spool import Entry, Spool
from polaris_jax.data.prepare.terms import MALFORMED, REASONS, Rules, SourceRows
from polaris_jax.data.prepare.tokens import answer_key, math_tokens, numbers_key
from polaris_jax.data.problems import digest_line
from polaris_jax.data.rows import PROBLEM_FIELDS, NeedsImage, RowError, lost_parts, parse_row
from polaris_jax.data.sorted_digest import sorted_digest
from polaris_jax.data.sources import DataError, Row
from polaris_jax.records import Problem
from polaris_jax.system.progress import Progress
from polaris_jax.system.text import printable

BATCH = 1000
REMEMBERED = 20_000  # problems whose grams are kept while near duplicates are compared


class Preparation:
    """The rows of a call and their fates.

    Args:
        sources: what is read.
        rules: what applies.
        folder: an empty local directory for rows.
        progress: shows how far it is.
    """

    def __init__(
        self, sources: Sequence[SourceRows], rules: Rules, *, folder: Path, progress: Progress
    ) -> None:
        self.sources = sorted(sources, key=lambda source: source.name)
        self.counts = [Counter[str]() for _ in self.sources]
        self.lost: Counter[str] = Counter()
        self._long_prompts: dict[int, int] = {}
        self._rules, self._progress = rules, progress
        self._spool = Spool(folder / "rows")
        self._facts = Facts()
        self._codes = array("B")  # index into REASONS of each row
        self._of_source = array("H")
        self._flags = array("B")
        self._partners: dict[int, tuple[int, float]] = {}
        self._hits: dict[int, Hit] = {}
        self._other_answer: set[int] = set()
        self._renamed: set[int] = set()

    def close(self) -> None:
        """Closes its file."""
        self._spool.close()

    @property
    def rows(self) -> int:
        """Number of rows read."""
        return len(self._spool)

    @property
    def kept_N(self) -> np.ndarray:
        """Numbers of the rows that stay, in order."""
        return np.flatnonzero(np.frombuffer(self._codes, np.uint8) == 0)

    def kept(self) -> Iterator[Problem]:
        """The problems that stay, in order."""
        for number, entry in enumerate(self._spool.entries()):
            if not self._codes[number]:
                yield self._finished(number, entry)

    # ---- the passes

    def read(self) -> str:
        """Reads every row and applies the row rules. The digest of what was read."""
        total = max(1, sum(source.count for source in self.sources))
        with self._progress.phase("read", total) as phase:
            for number, source in enumerate(self.sources):
                rule = row_rules(source.rules, math_reward=self._rules.math_reward)
                for row in source.rows():
                    self._read_row(number, source, row, rule)
                    if self.rows % BATCH == 0:
                        phase.advance_to(min(self.rows, total), f"{self.rows:,} rows")
            phase.advance_to(total)
        self.table = self._facts.table()
        return self._digest()

    def _read_row(self, number: int, source: SourceRows, row: Row | Problem, rule: Any) -> None:
        problem: Problem | None = None
        place, reason, detail, flags = "", "malformed", "", 0
        if isinstance(row, Problem):
            problem, place = row, row.id
            fields: Mapping[str, Any] = {}
        else:
            fields, place = row.fields, row.place
            try:
                if row.error is not None:
                    raise RowError(row.error)
                problem = parse_row(fields)
                self.lost.update(lost_parts(fields))
            except RowError as error:
                detail = str(error)
                reason = "needs_image" if isinstance(error, NeedsImage) else reason
        if problem is not None:
            verdict = rule(problem, fields)
            reason, detail = verdict.reason, verdict.detail
            lowest, highest = self._rules.pass_rates
            rate = problem.pass_rate
            if not reason and rate is not None and not lowest <= rate <= highest:
                reason, detail = "pass_rate_outside", f"{rate:g}"
            flags = 1 + 2 * (not verdict.readable) + 4 * bool(problem.extra or problem.turns)
            if source.marks and not problem.source:
                problem = dataclasses.replace(problem, source=source.name)
        self._facts.append(problem)
        self._codes.append(REASONS.index(reason))
        self._of_source.append(number)
        self._flags.append(flags)
        self._spool.append(Entry(number, place, problem, reason, detail))

    def _digest(self) -> str:
        """What `problems_digest` gives for the set as `read_problems` reads it."""
        flags_N = np.frombuffer(self._flags, np.uint8)
        first_N = first_of_each_text(self.table, np.flatnonzero(flags_N & 1))
        taken = taken_ids(self.table, first_N, by_content=False)
        first = np.zeros(self.rows, bool)
        first[first_N] = True

        def lines() -> Iterator[str]:
            for number, entry in enumerate(self._spool.entries()):
                if first[number] and (problem := entry.problem) is not None:
                    if number in taken:
                        problem = dataclasses.replace(problem, id=renamed_id(problem))
                    yield digest_line(problem, extras=True)

        return sorted_digest(lines())

    def require_problems(self) -> None:
        """Raises DataError if no row held a problem."""
        if (np.frombuffer(self._flags, np.uint8) & 1).any():
            return
        reason = next((e.detail for e in self._spool.entries()), "")
        first = f" (first: {self._spool[0].place}: {reason})" if self.rows else ""
        names = " + ".join(source.text for source in self.sources)
        raise DataError(
            f"data.problems={names!r}: no problem in it: {self.rows} rows, {self.rows} malformed"
            f"{printable(first)}; each row needs a {'/'.join(PROBLEM_FIELDS)} and an answer, or "
            "name the columns, like my.csv,problem=text,answer=result"
        )

    def leave_out_repeats(self) -> None:
        """Keeps each normalised text once."""
        found = repeats(self.table, self.kept_N)
        for number, kept in found.kept_of.items():
            self._leave_out(number, "duplicate", kept, 1.0)
        self._other_answer = found.other_answer

    def leave_out_long_prompts(self) -> None:
        """Leaves out problems whose prompts are over the limit."""
        with self._progress.phase("prompts", max(1, self.rows)) as phase:
            for numbers, problems in self._batches():
                tokens = self._rules.prompt_tokens(problems)
                for number, count in zip(numbers, tokens, strict=True):
                    if count > self._rules.max_prompt_tokens:
                        self._leave_out(number, "prompt_too_long")
                        self._long_prompts[number] = count
                phase.advance_to(numbers[-1])

    def leave_out_known(self) -> None:
        """Leaves out problems of benchmarks, then near duplicates."""
        near = np.array(["near" in source.rules for source in self.sources])
        index = BenchmarkIndex(self._rules.benchmarks)
        if not near.any() and not len(index):
            return
        hasher = GramHasher()
        row_parts, key_parts = [], []
        with self._progress.phase("compare", max(1, self.rows)) as phase:
            for numbers, problems in self._batches():
                texts = [math_tokens(problem.problem) for problem in problems]
                for number, hit in zip(numbers, index.find(texts), strict=True):
                    if hit is not None:
                        self._leave_out(number, "in_benchmark")
                        self._hits[number] = hit
                facts = [
                    f"{answer_key(problem.answer)};{numbers_key(tokens)};{problem.turns}"
                    for problem, tokens in zip(problems, texts, strict=True)
                ]
                row_parts.append(np.array(numbers))
                key_parts.append(band_keys(hasher, texts, facts))
                phase.advance_to(numbers[-1])
        if row_parts:
            self._leave_out_near(np.concatenate(row_parts), np.concatenate(key_parts), near)

    def _leave_out_near(self, rows_N: np.ndarray, keys: np.ndarray, near: np.ndarray) -> None:
        codes_N = np.frombuffer(self._codes, np.uint8)[rows_N]
        source_N = np.frombuffer(self._of_source, np.uint16)[rows_N]
        may_N = (codes_N == 0) & near[source_N]
        position = np.full(self.rows, -1)
        position[rows_N] = np.arange(len(rows_N))
        ranked_N = self.table.ranked(rows_N[may_N])
        keys = keys[position[ranked_N]]

        @functools.lru_cache(REMEMBERED)
        def grams_of(rank: int) -> frozenset:
            problem = self._spool[int(ranked_N[rank])].problem
            assert problem is not None
            return shingles(math_tokens(problem.problem))

        found = near_duplicates(keys, grams_of, least_similarity=self._rules.near_similarity)
        for late, (early, share) in found.items():
            self._leave_out(int(ranked_N[late]), "near_duplicate", int(ranked_N[early]), share)

    def apply_caps(self) -> None:
        """Keeps a sample of each source that has more problems than its cap."""
        source_N = np.frombuffer(self._of_source, np.uint16)
        kept_N = self.kept_N
        for number, source in enumerate(self.sources):
            if source.cap is not None:
                own_N = kept_N[source_N[kept_N] == number]
                for row in over_cap(self.table, own_N, source.cap):
                    self._leave_out(row, "over_cap")

    def finish(self) -> None:
        """Makes ids unique and counts the fates."""
        kept_N = self.kept_N
        self._renamed = taken_ids(self.table, kept_N, by_content=True)
        for number, source in enumerate(self._of_source):
            reason = REASONS[self._codes[number]]
            self.counts[source][reason or "kept"] += 1
            if number in self._other_answer:
                self.counts[source]["duplicate_with_other_answer"] += 1
        for number in self._renamed:
            self.counts[self._of_source[number]]["renamed_id"] += 1
        flags_N = np.frombuffer(self._flags, np.uint8)[kept_N]
        if unread := int((flags_N & 2).astype(bool).sum()):
            self.lost["gold"] = unread

    @property
    def has_extras(self) -> bool:
        """True if a problem that stays has other columns or turns."""
        return bool((np.frombuffer(self._flags, np.uint8)[self.kept_N] & 4).any())

    # ---- what became of them

    def rejected(self) -> Iterator[dict[str, Any]]:
        """A JSON-able record of each row that was left out, in order."""
        for number, entry in enumerate(self._spool.entries()):
            if reason := REASONS[self._codes[number]]:
                yield self._record(number, entry, reason)

    def long_prompts(self) -> list[tuple[str, int]]:
        """Id and tokens of each problem whose prompt is too long."""
        found = ((self._spool[number].problem, n) for number, n in self._long_prompts.items())
        return [(problem.id, n) for problem, n in found if problem is not None]

    def malformed(self, most: int) -> list[str]:
        """A line for each of the first rows that hold no problem."""
        code = REASONS.index(MALFORMED)
        numbers = np.flatnonzero(np.frombuffer(self._codes, np.uint8) == code)
        found = (self._spool[number] for number in numbers[:most].tolist())
        return [f"{entry.place}: {entry.detail}" for entry in found]

    def contradictions(self, most: int) -> list[str]:
        """A line for each of the first repeats with another answer than the row that stays."""
        lines = []
        for number in sorted(self._other_answer)[:most]:
            entry, kept = self._spool[number], self._spool[self._partners[number][0]]
            assert entry.problem is not None
            assert kept.problem is not None
            lines.append(
                f"{entry.place}: the problem of {kept.place} with another answer, "
                f"{entry.problem.answer!r}, there {kept.problem.answer!r}"
            )
        return lines

    def _record(self, number: int, entry: Entry, reason: str) -> dict[str, Any]:
        record: dict[str, Any] = {
            "source": self.sources[entry.source].name,
            "place": entry.place,
            "reason": reason,
        }
        if entry.detail:
            record["detail"] = entry.detail
        if number in self._long_prompts:
            record["detail"] = f"{self._long_prompts[number]} tokens"
        if entry.problem is not None:
            record |= {"id": entry.problem.id, "problem": entry.problem.problem}
            record["answer"] = entry.problem.answer
        if hit := self._hits.get(number):
            record["of"] = {
                "benchmark": hit.benchmark,
                "id": hit.problem.id,
                "problem": hit.problem.problem,
                "answer": hit.problem.answer,
                "share": round(hit.share, 4),
            }
        if number in self._partners:
            partner, share = self._partners[number]
            kept = self._spool[partner]
            assert kept.problem is not None
            record["of"] = {
                "source": self.sources[kept.source].name,
                "place": kept.place,
                "id": kept.problem.id,
                "problem": kept.problem.problem,
                "answer": kept.problem.answer,
                "share": round(share, 4),
            }
        return record

    def _finished(self, number: int, entry: Entry) -> Problem:
        problem = entry.problem
        assert problem is not None
        return (
            dataclasses.replace(problem, id=renamed_id(problem))
            if number in self._renamed
            else problem
        )

    def _leave_out(
        self, number: int, reason: str, partner: int | None = None, share: float = 0.0
    ) -> None:
        self._codes[number] = REASONS.index(reason)
        if partner is not None:
            self._partners[number] = (partner, share)

    def _batches(self) -> Iterator[tuple[list[int], list[Problem]]]:
        """The rows that stay so far, in order."""
        numbers: list[int] = []
        problems: list[Problem] = []
        for number, entry in enumerate(self._spool.entries()):
            if self._codes[number] or entry.problem is None:
                continue
            numbers.append(number)
            problems.append(entry.problem)
            if len(numbers) == BATCH:
                yield numbers, problems
                numbers, problems = [], []
        if numbers:
            yield numbers, problems
