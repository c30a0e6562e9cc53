"""Benchmark files, the sampling that the recipe evaluates them with, and the held-out problems."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from polaris_jax.config.data import DataSection
from polaris_jax.config.sections import EvaluateSection
from polaris_jax.config.settings import ConfigError
from polaris_jax.data.problem_sets import Make, Say, read_named
from polaris_jax.data.problems import read_problems
from polaris_jax.data.sources import DataError
from polaris_jax.records import Problem


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A known benchmark.

    Attributes:
        name: stem of its file.
        problems: how many it has.
        k: responses a problem in the recipe's final evaluation (avg@k).
    """

    name: str
    problems: int
    k: int


# Source: recipe's final evaluation; AMC23 is 83 problems of AMC12 2022-23, not the 40 of others.
BENCHMARKS = {
    b.name: b
    for b in (
        Benchmark("aime24", 30, 32),
        Benchmark("aime25", 30, 32),
        Benchmark("amc23", 83, 8),
        Benchmark("minerva", 272, 4),
        Benchmark("olympiad", 675, 4),
    )
}


def is_benchmark(source: str) -> bool:
    """True for a file that is named as a known benchmark."""
    path = Path(source)
    return bool(path.suffix) and path.stem in BENCHMARKS


def read_benchmark(path: str | Path) -> list[Problem]:
    """Every problem of a benchmark file, in its order, repeats included.

    A benchmark must be complete, unlike training data: a missing row changes the score. Problem
    texts may contain the instruction suffix; `data.prompts.add_suffix` does not add it twice.

    Raises:
        DataError: missing file, malformed rows, an id that occurs twice, or, in a file that is
            named as a known benchmark, another number of problems.
    """
    problems, report = read_problems(path, unique=False, field="evaluate.problems")
    if report.counts:
        raise DataError(
            f"evaluate.problems={str(path)!r}: {report.counts['malformed']} malformed rows "
            f"({report.messages[0]}); a benchmark must be whole, mend the file"
        )
    known = BENCHMARKS.get(Path(path).stem)
    if known is not None and known.problems != len(problems):
        raise DataError(
            f"evaluate.problems={str(path)!r}: {len(problems)} problems, and {known.name} has "
            f"{known.problems}; a benchmark must be whole: mend the file, or give another set "
            "another name"
        )
    return problems


def find_held_out_problems(
    evaluate: EvaluateSection, data: DataSection, say: Say, *, make: Make
) -> tuple[list[Problem], dict[str, int]]:
    """The held-out problems: `evaluate.problems`, else the procedural ones; rows left out, counted.

    Args:
        evaluate: the config's section.
        data: the config's section; `data.arithmetic.held_out` is read.
        say: gets lines for a person.
        make: returns the procedural held-out problems.

    Raises:
        ConfigError: neither is configured, or a file named as a known benchmark is not complete.
    """
    if is_benchmark(evaluate.problems):
        return read_benchmark(evaluate.problems), {}
    if evaluate.problems:
        return read_named(evaluate.problems, say, unique=False, field="evaluate.problems")
    if data.arithmetic.held_out:
        return make(), {}
    raise ConfigError(
        "evaluate.problems='': no held-out problems; name a file or a data set, or train with "
        "evaluate.every_steps=0"
    )
