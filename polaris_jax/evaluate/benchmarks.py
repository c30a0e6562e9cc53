"""Benchmark files, the sampling that the recipe evaluates them with, and the held-out problems."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path

from polaris_jax.config.data import DataSection
from polaris_jax.config.sections import EvaluateSection
from polaris_jax.config.settings import ConfigError
from polaris_jax.data.prepare.tokens import math_tokens
from polaris_jax.data.problem_sets import Make, Say, read_named
from polaris_jax.data.problems import read_problems
from polaris_jax.data.source_text import DataError, parse_source
from polaris_jax.records import Problem
from polaris_jax.system.files import is_remote


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A known benchmark.

    Attributes:
        name: stem of its file, and the name by which it is asked for.
        problems: how many it has.
        k: responses a problem in the recipe's final evaluation (avg@k).
        source: where it is on the Hugging Face Hub, as `data.source_text` writes it.
        split: its split there.
        digest: `texts_digest` of the file that the recipe evaluated.
        about: what else is to be known about it.
    """

    name: str
    problems: int
    k: int
    source: str
    split: str
    digest: str
    about: str = ""


# Source: recipe's final evaluation. The Hub's copies were not downloaded where this was written:
# names, splits and columns are as others' code uses them.
BENCHMARKS = {
    b.name: b
    for b in (
        Benchmark(
            *("aime24", 30, 32, "HuggingFaceH4/aime_2024", "train"),
            "1fcb524de2f2864a",
        ),
        Benchmark(
            *("aime25", 30, 32, "math-ai/aime25", "test"),
            "456e3125693336be",
        ),
        Benchmark(
            *("amc23", 83, 8, "AI-MO/aimo-validation-amc", "train"),
            "b7283f80873c8845",
            "those of the 100 problems of AMC 12A and 12B, 2022 and 2023, whose answers could be "
            "made whole numbers; what others call AMC23 are often 40 problems of 2023 alone",
        ),
        Benchmark(
            *("minerva", 272, 4, "math-ai/minervamath,problem=question,answer=answer", "test"),
            "4e1547b42af927b5",
        ),
        Benchmark(
            *("olympiad", 675, 4, "knoveleng/OlympiadBench,problem=question", "train"),
            "f5e0abd5eaa14b1a",
            "the English competition problems with text alone and a final answer of OlympiadBench; "
            "copies with 674 leave one out",
        ),
    )
}


# Column of a pooled problem that says which set it is from.
POOLED = "pooled_set"


def pooled_sources(text: str) -> list[str]:
    """The sources of `aime24+aime25`, which are pooled; one for any other text.

    A file with a + in its name is one source.
    """
    where = text.partition(",")[0]
    if "+" not in text or ("+" in where and Path(where).exists()):
        return [text]
    return [part.strip() for part in text.split("+")]


def known_benchmarks(text: str) -> list[str]:
    """Names of the known benchmarks among pooled sources, files named as one included."""
    stems = (
        part if part in BENCHMARKS else Path(parse_source(part).where).stem
        for part in pooled_sources(text)
        if part
    )
    return [stem for stem in stems if stem in BENCHMARKS]


def is_benchmark(source: str, *, field: str = "evaluate.problems") -> bool:
    """True for the name of a known benchmark, and for a file that is named as one.

    Args:
        source: what the user gave.
        field: config field or flag that gave it, for errors.

    Raises:
        DataError: it is one word, and neither a known benchmark nor a file.
    """
    if source.isalnum() and source not in BENCHMARKS and not Path(source).exists():
        raise DataError(
            f"{field}={source!r}: there is no such file, and no benchmark of that name; give a "
            f"path, or one of {', '.join(BENCHMARKS)}"
        )
    path = Path(parse_source(source).where)
    return source in BENCHMARKS or (bool(path.suffix) and path.stem in BENCHMARKS)


def benchmark_source(text: str) -> str:
    """The source of a known benchmark if `text` is its name and no file; else `text`."""
    known = BENCHMARKS.get(text)
    return text if known is None or Path(text).exists() else known.source


def texts_digest(problems: Iterable[Problem]) -> str:
    """16 hex digits of the problems' texts, whatever their order, white space and macros."""
    texts = sorted(" ".join(math_tokens(problem.problem)) for problem in problems)
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=8).hexdigest()


def read_benchmark(
    path: str | Path, *, field: str = "evaluate.problems", say: Say = lambda _: None
) -> list[Problem]:
    """Every problem of a benchmark, in its order, repeats included.

    A benchmark must be complete, unlike training data: a missing row changes the score. Problem
    texts may contain the instruction suffix; `data.prompts.add_suffix` does not add it twice.

    Args:
        path: a file, a name in `BENCHMARKS`, or another source.
        field: config field or flag that gave it, for errors.
        say: gets a warning if a known benchmark has other texts than the recipe's file.

    Raises:
        DataError: missing file, malformed rows, an id that occurs twice, or, in a file that is
            named as a known benchmark, another number of problems.
    """
    text = str(path)
    source = benchmark_source(text)
    where = Path(parse_source(source).where)
    named = where.suffix and where.stem in BENCHMARKS and not is_remote(source)
    if named and not where.exists():
        raise DataError(
            f"{field}={text!r}: there is no such file; {field}={where.stem} downloads that "
            "benchmark"
        )
    problems, report = read_problems(source, unique=False, field=field)
    if report.counts:
        raise DataError(
            f"{field}={text!r}: {report.counts['malformed']} malformed rows "
            f"({report.messages[0]}); a benchmark must be whole, mend the file"
        )
    known = BENCHMARKS.get(Path(parse_source(text).where).stem)
    if known is not None and known.problems != len(problems):
        raise DataError(
            f"{field}={text!r}: {len(problems)} problems, and {known.name} has "
            f"{known.problems}; a benchmark must be whole: mend the file, or give another set "
            "another name"
        )
    if known is not None and (digest := texts_digest(problems)) != known.digest:
        say(
            f"warning: {text}: its texts are not those that the recipe evaluated as {known.name} "
            f"(digest {digest}, there {known.digest}); scores may not be comparable"
        )
    return problems


def read_against(text: str, *, say: Say) -> tuple[str, list[Problem]]:
    """The name and the problems of a benchmark that training problems must not hold.

    Args:
        text: a file, a name in `BENCHMARKS`, or another source.
        say: gets lines for a person.

    Raises:
        DataError: it cannot be read, or is a known benchmark and not complete.
    """
    if is_benchmark(text, field="--against"):
        return parse_source(text).name, read_benchmark(text, field="--against", say=say)
    return parse_source(text).name, read_named(text, say, field="--against")[0]


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
    sources = pooled_sources(evaluate.problems)
    if len(sources) > 1:
        return _pooled(evaluate.problems, sources, say)
    if evaluate.problems:
        return _read(evaluate.problems, say)
    if data.arithmetic.held_out:
        return make(), {}
    raise ConfigError(
        "evaluate.problems='': no held-out problems; name a file or a data set, or train with "
        "evaluate.every_steps=0"
    )


def _read(source: str, say: Say) -> tuple[list[Problem], dict[str, int]]:
    if is_benchmark(source):
        return read_benchmark(source, say=say), {}
    return read_named(source, say, unique=False, field="evaluate.problems")


def _pooled(text: str, sources: list[str], say: Say) -> tuple[list[Problem], dict[str, int]]:
    """The problems of several sources, each with the name of its own in column `POOLED`.

    An id that an earlier source has gets its own set's name before it.
    """
    if not all(sources):
        raise DataError(
            f"evaluate.problems={text!r}: a source is empty; pool sets as in aime24+aime25"
        )
    names = [parse_source(source).name for source in sources]
    if len(set(names)) < len(names):
        raise DataError(
            f"evaluate.problems={text!r}: two sets are named {max(names, key=names.count)}; name "
            "them apart, as in a.jsonl,name=first+b.jsonl,name=second"
        )
    problems: list[Problem] = []
    left_out: dict[str, int] = {}
    taken: set[str] = set()
    for name, source in zip(names, sources, strict=True):
        found, counts = _read(source, say)
        for reason, count in counts.items():
            left_out[reason] = left_out.get(reason, 0) + count
        for problem in found:
            own = f"{name}/{problem.id}" if problem.id in taken else problem.id
            extra = {**problem.extra, POOLED: name}
            problems.append(dataclasses.replace(problem, id=own, extra=extra))
        taken = {problem.id for problem in problems}
    if len(taken) < len(problems):
        raise DataError(
            f"evaluate.problems={text!r}: ids occur twice, also with the names of their sets "
            "before them; give the rows ids of their own"
        )
    return problems, left_out
