"""Which problems a command works on: a named source, earlier commands' files, or generated ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from polaris_jax.config.sections import DataSection
from polaris_jax.config.settings import ConfigError
from polaris_jax.data.filters import drop_long_prompts
from polaris_jax.data.problems import read_problems
from polaris_jax.records import Problem

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
    return problems, report.counts


def find_training_problems(
    data: DataSection, workdir: epath.Path, say: Say, *, make: Make, prepared: bool = True
) -> tuple[list[Problem], str]:
    """The problems to train on, and where they come from.

    `data.problems` first, else the workdir's curated.parquet, else its problems.parquet, else the
    procedural problems of `data.arithmetic`.

    Args:
        data: `config.data`.
        workdir: where `prepare` and `calibrate` left their files.
        say: gets lines for a person.
        make: returns the procedural problems.
        prepared: False ignores the workdir's files.

    Raises:
        ConfigError: there is none of these, or no valid problem in it.
    """
    if data.problems:
        return read_named(data.problems, say)[0], data.problems
    for name in (CURATED, PREPARED) if prepared else ():
        if (workdir / name).exists():
            return read_named(str(workdir / name), say)[0], str(workdir / name)
    if data.arithmetic.train:
        return make(), f"{data.arithmetic.train} arithmetic problems"
    raise ConfigError(
        f"data.problems='': no problems; name a file, or run `polaris prepare` on {workdir} first"
    )


def fitting(
    problems: Sequence[Problem], data: DataSection, *, tokenizer: Any, say: Say
) -> list[Problem]:
    """The problems whose prompt is within `data.max_prompt_tokens`; `say` gets the number left out.

    Raises:
        ConfigError: no prompt is that short.
    """
    kept, dropped = drop_long_prompts(
        problems,
        tokenizer,
        suffix=data.prompt_suffix,
        max_prompt_tokens=data.max_prompt_tokens,
    )
    if dropped:
        longest = sorted(dropped, key=lambda i: -dropped[i])[:NAMED_PROMPTS]
        some = ", ".join(f"{name} ({dropped[name]} tokens)" for name in longest)
        say(
            f"left out {len(dropped)} problems with prompts over data.max_prompt_tokens="
            f"{data.max_prompt_tokens}, the longest {some}"
        )
    if not kept:
        raise ConfigError(
            f"data.max_prompt_tokens={data.max_prompt_tokens}: none of the {len(problems)} prompts "
            "is that short; raise it"
        )
    return kept
