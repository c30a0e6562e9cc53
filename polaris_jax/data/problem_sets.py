"""Which problems a command works on: a named source, earlier commands' files, or generated ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from polaris_jax.config.data import DataSection
from polaris_jax.config.settings import ConfigError
from polaris_jax.data.filters import drop_long_prompts
from polaris_jax.data.problems import problems_digest, read_made_of, read_problems, row_count
from polaris_jax.data.prompts import prompt_format
from polaris_jax.data.source_text import parse_source
from polaris_jax.records import Problem
from polaris_jax.run.identity import differing_inputs

PREPARED = "problems.parquet"  # written by `polaris prepare`
CURATED = "curated.parquet"  # written by `polaris calibrate`
NAMED_PROMPTS = 3  # prompts that are too long which a line names; all are counted
Say = Callable[[str], None]
Make = Callable[[], list[Problem]]


def read_named(
    source: str, say: Say, *, unique: bool = True, field: str = "data.problems"
) -> tuple[list[Problem], dict[str, int]]:
    """The problems of a source, and how many rows were left out for each reason.

    Args:
        source: a file, a data set directory or a data set's name.
        say: gets a line for each row that is left out, and one with the counts.
        unique: leave out repeated problems.
        field: config field that names the source, for errors.
    """
    problems, report = read_problems(source, unique=unique, field=field)
    for message in report.messages:
        say(f"left out: {message}")
    if report.counts:
        counts = ", ".join(f"{count} {name}" for name, count in report.counts.items())
        say(f"{source}: {report.kept} of {report.rows} rows kept ({counts})")
    for warning in report.warnings:
        say(warning)
    for warning in cap_warnings(source, field):
        say(warning)
    return problems, report.counts


def cap_warnings(source: str, field: str) -> list[str]:
    """A line that a source's cap does nothing here; [] without one."""
    cap = parse_source(source).cap
    if cap is None:
        return []
    return [
        f"warning: {field}={source}: cap={cap} holds for `polaris prepare` alone, and all of the "
        "source is read; run `polaris prepare` first, or give a smaller file"
    ]


@dataclasses.dataclass(frozen=True)
class ProblemSet:
    """The problems of a command.

    Attributes:
        problems: the problems, before long prompts are left out.
        place: "curated.parquet" or "problems.parquet" of the workdir; "" for the config's source.
        origin: the file, data set or function that they were read from, for people.
        why: why this one, for people.
        source: digest of the config's source that they come from; None if it is not known.
        model: inputs of the model for which `calibrate` chose them; None if nothing is recorded.
    """

    problems: Sequence[Problem]
    place: str
    origin: str
    why: str
    source: str | None
    model: Mapping[str, Any] | None = None

    @property
    def digest(self) -> str:
        """A text that depends on the problems' content, but not on their order."""
        return problems_digest(self.problems, extras=True)

    def say_if_for_another(self, model: Mapping[str, Any], say: Say) -> None:
        """Warns if `calibrate` chose the problems for a model with other inputs than these."""
        if other := differing_inputs(self.model or {}, model):
            say(
                f"warning: {self.origin} was curated for a model with another "
                f"{' and '.join(other)}; `polaris calibrate` makes it anew"
            )

    def made_of(self) -> dict[str, Any]:
        """What a file that is made of this set records of it; see `find_training_problems`."""
        return {"name": self.origin, "digest": self.digest, "source": self.source}


def find_training_problems(
    data: DataSection,
    workdir: epath.Path,
    say: Say,
    *,
    make: Make,
    files: Sequence[str] = (CURATED, PREPARED),
    began_with: str | None = None,
) -> ProblemSet:
    """The problems to train on.

    The workdir's curated.parquet, else its problems.parquet, else the config's source:
    `data.problems`, else the procedural problems of `data.arithmetic`. A file of the workdir has to
    be made of the config's source: by the digest that it records, not by a name.

    Args:
        data: `config.data`.
        workdir: where `prepare` and `calibrate` left their files.
        say: gets lines for a person.
        make: returns the procedural problems.
        files: names of the workdir's files that are read, the first before the others.
        began_with: `ProblemSet.place` of the set that a resumed run began with: it keeps that one.
            None: no run has begun.

    Raises:
        ConfigError: there is none of these, no valid problem in it, or a file of the workdir was
            made of other problems.
    """
    if began_with is not None:
        files = (began_with,) if began_with else ()
        if began_with and not (workdir / began_with).exists():
            raise ConfigError(
                f"{workdir / began_with}: the run in this workdir began with its problems, and it "
                "is gone; restore the file, or begin anew with --overwrite"
            )
    for name in files:
        path = workdir / name
        if path.exists():
            if name == CURATED and row_count(path) == 0:
                raise ConfigError(
                    f"{path}: `polaris calibrate` kept no problem, since the model solves all of "
                    "them always; take harder problems, set calibrate.preset=full and calibrate "
                    "again, or set data.use=problems"
                )
            problems = read_named(str(path), say)[0]
            made_of = read_made_of(path)
            if began_with is None:
                _check_made_of(path, made_of, data, say)
                why = f"made of {made_of['name']}" if made_of else "found in the workdir"
            else:
                why = "the run began with it"
            known = made_of or {}
            return ProblemSet(
                problems, name, str(path), why, known.get("source"), known.get("model")
            )
    if began_with is not None:
        why = "the run began with it"
    elif not files:
        why = "the config's source"
    else:
        why = f"no {' or '.join(files)} in the workdir"
    if data.problems:
        problems, origin = read_named(data.problems, say)[0], f"data.problems={data.problems}"
    elif data.arithmetic.train:
        problems, origin = make(), f"{data.arithmetic.train} arithmetic problems"
    else:
        raise ConfigError(
            f"data.problems='': no problems; name a file, or run `polaris prepare` on {workdir} "
            "first"
        )
    return ProblemSet(problems, "", origin, why, problems_digest(problems, extras=True))


def _check_made_of(
    path: epath.Path, made_of: dict[str, Any] | None, data: DataSection, say: Say
) -> None:
    """Checks that a file of the workdir was made of the problems that the config means.

    Raises:
        ConfigError: it was made of others; names both.
    """
    command = "calibrate" if path.name == CURATED else "prepare"
    if data.problems:
        wanted, name = (
            problems_digest(read_problems(data.problems)[0], extras=True),
            (f"data.problems={data.problems}"),
        )
    elif path.name == CURATED and (prepared := path.with_name(PREPARED)).exists():
        wanted, name = problems_digest(read_problems(prepared)[0], extras=True), str(prepared)
    else:
        return  # nothing beside it that it could contradict
    known = {(made_of or {}).get("digest"), (made_of or {}).get("source")}
    if wanted in known:
        return
    if None in known:
        say(
            f"warning: {path} does not record what it was made of (an earlier version made it, or "
            f"what it was made of); used as it is. `polaris {command}` makes it anew"
        )
        return
    former = f"{made_of['name']} (digest {made_of['digest'][:8]})" if made_of else ""
    raise ConfigError(
        f"{name} (digest {wanted[:8]}): {path} was made of other problems: {former}; run "
        f"`polaris {command}` again, set data.use=problems to leave the workdir's files out, or "
        "put the former problems back"
    )


def fitting(
    problems: Sequence[Problem], data: DataSection, *, tokenizer: Any, vocab_size: int, say: Say
) -> list[Problem]:
    """The problems whose prompt is within `data.max_prompt_tokens`; `say` gets the number left out.

    Raises:
        ConfigError: no prompt is that short, or one has a token id that the model does not know.
    """
    return fitting_prompts(problems, data, tokenizer=tokenizer, vocab_size=vocab_size, say=say)[0]


def fitting_prompts(
    problems: Sequence[Problem], data: DataSection, *, tokenizer: Any, vocab_size: int, say: Say
) -> tuple[list[Problem], str]:
    """What `fitting` returns, and a digest of the token ids of these problems' prompts.

    Raises:
        ConfigError: see `fitting`.
    """
    kept, dropped, digest = drop_long_prompts(
        problems,
        tokenizer,
        prompt_format=prompt_format(data),
        max_prompt_tokens=data.max_prompt_tokens,
        vocab_size=vocab_size,
        say=say,
    )
    say_long_prompts(list(dropped.items()), data.max_prompt_tokens, kept=len(kept), say=say)
    return kept, digest


def say_long_prompts(dropped: Sequence[tuple[str, int]], most: int, *, kept: int, say: Say) -> None:
    """Says which prompts are longer than `data.max_prompt_tokens`, if any are.

    Args:
        dropped: id and tokens of each problem whose prompt is.
        most: the limit.
        kept: number of prompts that are not.
        say: gets the line.

    Raises:
        ConfigError: all are.
    """
    if dropped:
        longest = sorted(dropped, key=lambda pair: -pair[1])[:NAMED_PROMPTS]
        some = ", ".join(f"{name} ({tokens} tokens)" for name, tokens in longest)
        say(
            f"left out {len(dropped)} problems with prompts over data.max_prompt_tokens="
            f"{most}, the longest {some}"
        )
    if dropped and not kept:
        raise ConfigError(
            f"data.max_prompt_tokens={most}: none of the {len(dropped)} prompts is that short; "
            "raise it"
        )
