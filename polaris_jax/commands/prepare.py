r"""Problems from anywhere to the workdir's problems.parquet.

Reads `data.problems`, or the sources of the flags: jsonl, json, csv, parquet, a Hugging Face data
set directory or name, a function as file.py:name; without any, the procedural problems of
`data.arithmetic`. Validates, leaves out repeats, near repeats, problems of benchmarks (--against),
rows that cannot be learned from (--drop) and prompts that are too long. prepare.json counts every
row left out by source and reason, rejected.jsonl holds each of them. docs/data.md has the details.

Behind a source stand its options: name, cap (most problems that stay), config, split and revision
(of a Hub data set), and the columns problem, answer, id, source, pass_rate.

Example:
  polaris prepare --config=configs/polaris_4b.py --workdir=runs/4b \
      --config.data.problems=deepscaler.jsonl --against=aime24 --against=aime25
  polaris prepare --config=configs/tiny_cpu.py --workdir=runs/mine \
      --source=my.csv,problem=text,answer=result,cap=5000 --source=openai/gsm8k,config=main
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from polaris_jax.commands.flags import parse
from polaris_jax.commands.run import start_jax
from polaris_jax.config import ConfigError, RunConfig
from polaris_jax.data.prepare.options import RULES, PrepareOptions
from polaris_jax.data.rows import EARLIER
from polaris_jax.system.signals import begin_work

if TYPE_CHECKING:
    from etils import epath

    from polaris_jax.data.prepare.pipeline import Preparation
    from polaris_jax.data.prepare.terms import SourceRows
    from polaris_jax.system.progress import Progress

REJECTED = "rejected.jsonl"
SUMMARY = "prepare.json"
ROWS = ".prepare_rows"  # folder of the workdir with the rows, while the command runs
NAMED_ROWS = 20  # malformed rows and contradictions that are printed; rejected.jsonl has all
# What the entries of prepare.json's `lost` say to a person.
LOST = {
    "turns": "turns of their chat: what follows the last user turn, or is no text",
    EARLIER: "all turns before their question: one of these is a tool's, or no text",
    "gold": "their gold: the math grader cannot read it, and only the same letters equal it; set "
    "reward.function, or leave them out",
}
# Flags that name a column, and our field.
COLUMN_FLAGS = {
    "problem_column": "problem",
    "answer_column": "answer",
    "id_column": "id",
    "pass_rate_column": "pass_rate",
}


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_string(
        "source", [], "a source with its options; may be given several times", flag_values=values
    )
    for flag, field in COLUMN_FLAGS.items():
        flags.DEFINE_string(
            flag, "", f"column of the sources that holds the {field}", flag_values=values
        )
    flags.DEFINE_multi_string(
        "against",
        [],
        "benchmark whose problems must not stay: a file, or a name like aime24; several times",
        flag_values=values,
    )
    flags.DEFINE_list("drop", list(RULES), "rules that apply; empty: none", flag_values=values)
    flags.DEFINE_float(
        "near_similarity",
        0.8,
        "share of common 3-grams from which problems with equal answers and numbers are near "
        "duplicates",
        lower_bound=0.5,
        upper_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "pass_rates",
        "0:1",
        "LOWEST:HIGHEST; leaves out problems whose row has a pass rate outside",
        flag_values=values,
    )


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse("prepare", argv, doc=__doc__ or "", define=_define)
    own = command.flags
    unknown = [rule for rule in own["drop"] if rule and rule not in RULES]
    if unknown:
        raise ConfigError(f"--drop={unknown[0]}: no such rule; there are {', '.join(RULES)}")
    columns = {field: own[flag] for flag, field in COLUMN_FLAGS.items() if own[flag]}
    if own["source"] and command.config.data.problems:
        raise ConfigError(
            f"--source: data.problems={command.config.data.problems!r} names problems, too; leave "
            "one out, like --config.data.problems="
        )
    if columns and not own["source"]:
        flag = next(flag for flag in COLUMN_FLAGS if own[flag])
        field = COLUMN_FLAGS[flag]
        raise ConfigError(
            f"--{flag}: belongs to --source; behind data.problems write the column, like "
            f"my.csv,{field}={own[flag]}, so that every command reads it so"
        )
    pass_rates = _range(own["pass_rates"])
    start_jax(command)
    from polaris_jax.system.processes import is_first
    from polaris_jax.system.progress import Progress

    begin_work()
    options = PrepareOptions(
        sources=tuple(own["source"]),
        columns=columns,
        against=tuple(own["against"]),
        drop=frozenset(filter(None, own["drop"])),
        near_similarity=own["near_similarity"],
        pass_rates=pass_rates,
    )
    progress = Progress(enabled=is_first())
    prepare(command.config, command.workdir, progress=progress, options=options)
    return 0


def _range(text: str) -> tuple[float, float]:
    """The two rates of `0.1:0.9`."""
    try:
        lowest, highest = map(float, text.split(":"))
    except ValueError:
        lowest, highest = 1.0, 0.0
    if not 0 <= lowest <= highest <= 1:
        raise ConfigError(
            f"--pass_rates={text}: must be two rates in [0, 1], the lower one first, like 0.1:0.9"
        )
    return lowest, highest


def prepare(
    config: RunConfig,
    workdir: epath.Path,
    *,
    progress: Progress,
    options: PrepareOptions | None = None,
) -> None:
    """Reads, validates and filters problems; writes them, prepare.json and rejected.jsonl.

    A run that has begun with problems.parquet keeps it: nothing is written then.

    Raises:
        ConfigError: no source, no problem left, or the workdir holds another config's run.
    """
    from polaris_jax.data.problem_sets import PREPARED
    from polaris_jax.run.owner import command_owns
    from polaris_jax.run.record import refuse_other_run
    from polaris_jax.run.workdir import ensure_workdir
    from polaris_jax.system.processes import is_first

    options = options or PrepareOptions()
    refuse_other_run(workdir, config, sections=("model", "data", "warmstart"))
    if _run_began(workdir):
        progress.line(f"{PREPARED} stays: the run in {workdir} began with it; nothing is prepared")
        return
    sources, origin = _sources(config, options)
    benchmarks = _benchmarks(config, options, progress)
    ensure_workdir(workdir)
    writes = (PREPARED, SUMMARY, REJECTED)
    with (
        command_owns(workdir, "prepare", writes=writes, primary=is_first()) as ownership,
        _folder(workdir, primary=is_first()) as folder,
        _prepared(config, options, sources, benchmarks, folder, progress) as (found, digest),
    ):
        _say(found, progress)
        made_of = {"name": origin, "digest": digest, "source": digest}
        if is_first():
            ownership.check()
            _write(found, folder, workdir, made_of, options)
        progress.line(f"prepared {len(found.kept_N)} problems from {origin} -> {PREPARED}")


def _run_began(workdir: epath.Path) -> bool:
    """True if the workdir's run reads problems.parquet, or what was made of it."""
    from polaris_jax.data.problem_sets import PREPARED
    from polaris_jax.run.record import began_with, read_record

    record = read_record(workdir)
    return (
        record is not None and bool(began_with(record, workdir)) and (workdir / PREPARED).exists()
    )


def _sources(config: RunConfig, options: PrepareOptions) -> tuple[list[SourceRows], str]:
    """The sources, and their names for people."""
    from polaris_jax.assemble import procedural_problems
    from polaris_jax.data.prepare.reading import open_sources
    from polaris_jax.data.prepare.terms import SourceRows

    if options.sources:
        sources = open_sources(
            options.sources, rules=options.drop, columns=options.columns, field="--source"
        )
        return sources, " + ".join(source.text for source in sorted(sources, key=lambda s: s.name))
    if config.data.problems:
        return open_sources([config.data.problems], rules=options.drop), config.data.problems
    if not config.data.arithmetic.train:
        raise ConfigError(
            "data.problems='': nothing to prepare; name a file or a data set, like "
            "--config.data.problems=problems.jsonl"
        )
    # They are made to be solved and to resemble each other: no rule applies to them.
    count = config.data.arithmetic.train
    rows = SourceRows("arithmetic", "", lambda: procedural_problems(config), count=count)
    return [rows], f"{count} arithmetic problems"


def _benchmarks(
    config: RunConfig, options: PrepareOptions, progress: Progress
) -> list[tuple[str, list[Any]]]:
    """The problems of each benchmark that --against names."""
    from polaris_jax.evaluate.benchmarks import read_against

    if config.evaluate.problems and not options.against:
        progress.line(
            f"evaluate.problems={config.evaluate.problems} is not compared with the training "
            f"problems; --against={config.evaluate.problems} leaves out what is in both"
        )
    return [read_against(text, say=progress.line) for text in options.against]


@contextlib.contextmanager
def _folder(workdir: epath.Path, *, primary: bool) -> Iterator[Path]:
    """An empty local directory for rows: in the workdir, so that its disk has to hold them."""
    from polaris_jax.system.files import is_remote

    if is_remote(workdir) or not primary:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    folder = Path(workdir / ROWS)
    shutil.rmtree(folder, ignore_errors=True)  # a kill leaves it
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _prepared(
    config: RunConfig,
    options: PrepareOptions,
    sources: list[SourceRows],
    benchmarks: list[tuple[str, list[Any]]],
    folder: Path,
    progress: Progress,
) -> Iterator[tuple[Preparation, str]]:
    """The rows with their fates, and the digest of what was read."""
    from polaris_jax.assemble import load_base_tokenizer
    from polaris_jax.data.filters import PromptChecks
    from polaris_jax.data.prepare.pipeline import Preparation
    from polaris_jax.data.prepare.summary import none_left
    from polaris_jax.data.prepare.terms import Rules
    from polaris_jax.data.problem_sets import say_long_prompts
    from polaris_jax.data.prompts import prompt_format
    from polaris_jax.reward.configured import LOOKED_AT, warn_of_reward

    tokenizer = load_base_tokenizer(config)
    prompts = PromptChecks(tokenizer, prompt_format(config.data), say=progress.line, remember=False)
    rules = Rules(
        math_reward=not config.reward.function,
        near_similarity=options.near_similarity,
        benchmarks=benchmarks,
        prompt_tokens=lambda problems: list(map(len, prompts.token_ids(problems))),
        max_prompt_tokens=config.data.max_prompt_tokens,
        pass_rates=options.pass_rates,
    )
    found = Preparation(sources, rules, folder=folder, progress=progress)
    try:
        digest = found.read()
        found.require_problems()
        found.leave_out_repeats()
        found.leave_out_long_prompts()
        prompts.warn()
        kept = len(found.kept_N)
        say_long_prompts(
            found.long_prompts(), config.data.max_prompt_tokens, kept=kept, say=progress.line
        )
        found.leave_out_known()
        found.apply_caps()
        found.finish()
        if not len(found.kept_N):
            raise ConfigError(none_left(found))
        looked_at = list(itertools.islice(found.kept(), LOOKED_AT))
        warn_of_reward(config.reward, config.data, tokenizer, looked_at, progress.line)
        yield found, digest
    finally:
        found.close()


def _say(found: Preparation, progress: Progress) -> None:
    """Prints what was left out."""
    from polaris_jax.data.prepare.summary import messages, table
    from polaris_jax.system.foreign import printable

    for message in messages(found, NAMED_ROWS):
        progress.line(f"left out: {message}")
    for part, rows in found.lost.items():
        progress.line(f"warning: {rows} rows lose {LOST.get(part, printable(part))}")
    for line in table(found):
        progress.line(line)


def _write(
    found: Preparation,
    folder: Path,
    workdir: epath.Path,
    made_of: dict[str, Any],
    options: PrepareOptions,
) -> None:
    from polaris_jax.data.prepare.output import write_kept, write_rejected
    from polaris_jax.data.prepare.summary import summary
    from polaris_jax.data.problem_sets import PREPARED
    from polaris_jax.run.workdir import write_json
    from polaris_jax.system.files import move_file

    write_kept(found, folder / PREPARED, made_of=made_of)
    write_rejected(found, folder / REJECTED)
    move_file(folder / REJECTED, workdir / REJECTED)
    move_file(folder / PREPARED, workdir / PREPARED)
    told = {"source": made_of["name"], "options": options.as_dict()}
    write_json(workdir / SUMMARY, summary(found, NAMED_ROWS) | told)
