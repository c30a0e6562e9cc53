r"""Problems from anywhere to the workdir's problems.parquet.

Reads `data.problems` (jsonl, json, parquet, a Hugging Face data set directory or name, a function
as file.py:name; empty: the procedural problems of `data.arithmetic`), validates, deduplicates and
filters; prepare.json counts every row left out, by reason.

Example:
  polaris prepare --config=configs/polaris_4b.py --workdir=runs/4b \
      --config.data.problems=deepscaler.jsonl
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polaris_jax.commands.flags import parse
from polaris_jax.commands.run import start_jax
from polaris_jax.config import ConfigError, RunConfig
from polaris_jax.system.signals import begin_work

if TYPE_CHECKING:
    from etils import epath

    from polaris_jax.records import Problem
    from polaris_jax.system.progress import Progress


# What the entries of prepare.json's `lost` say to a person.
LOST = {
    "turns": "turns of their chat: what follows the last user turn, or is no text",
    "gold": "their gold: the math grader cannot read it (programs, unit tests, proofs); set "
    "reward.function, or leave them out",
}


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse("prepare", argv, doc=__doc__ or "")
    start_jax(command)
    from polaris_jax.system.processes import is_first
    from polaris_jax.system.progress import Progress

    begin_work()
    prepare(command.config, command.workdir, progress=Progress(enabled=is_first()))
    return 0


def prepare(config: RunConfig, workdir: epath.Path, *, progress: Progress) -> None:
    """Reads, validates, deduplicates and filters problems; writes them and prepare.json.

    Raises:
        ConfigError: no source, no problem left, or the workdir holds another config's run.
    """
    from polaris_jax.assemble import load_base_tokenizer
    from polaris_jax.data.problem_sets import PREPARED, fitting
    from polaris_jax.data.problems import problems_digest, write_problems
    from polaris_jax.reward.golds import gold_kinds
    from polaris_jax.run.owner import command_owns
    from polaris_jax.run.record import refuse_other_run
    from polaris_jax.run.workdir import ensure_workdir, write_json
    from polaris_jax.system.foreign import printable
    from polaris_jax.system.processes import is_first

    refuse_other_run(workdir, config, sections=("model", "data", "warmstart"))
    ensure_workdir(workdir)
    writes = (PREPARED, "prepare.json")
    with command_owns(workdir, "prepare", writes=writes, primary=is_first()) as ownership:
        problems, origin, read = _read(config, workdir, progress)
        tokenizer = load_base_tokenizer(config)
        kept = fitting(problems, config.data, tokenizer=tokenizer, say=progress.line)
        if not config.reward.function and (golds := [p for p in kept if not gold_kinds(p.answer)]):
            read["lost"]["gold"] = len(golds)
        for part, rows in read["lost"].items():
            progress.line(f"warning: {rows} rows lose {LOST.get(part, printable(part))}")
        if len(kept) < len(problems):
            read["counts"]["prompt_too_long"] = len(problems) - len(kept)
        digest = problems_digest(problems, extras=True)
        made_of = {"name": origin, "digest": digest, "source": digest}
        if is_first():
            ownership.check()
            write_problems(kept, workdir / PREPARED, made_of=made_of)
            write_json(workdir / "prepare.json", read | {"source": origin, "kept": len(kept)})
    progress.line(f"prepared {len(kept)} problems from {origin} -> {PREPARED}")


def _read(
    config: RunConfig, workdir: epath.Path, progress: Progress
) -> tuple[list[Problem], str, dict[str, Any]]:
    """The problems, the name of their source, and the counts of its rows for prepare.json."""
    from polaris_jax.assemble import training_problems
    from polaris_jax.data.problems import read_problems

    if config.data.problems:
        problems, report = read_problems(config.data.problems)
        for message in report.messages:
            progress.line(f"left out: {message}")
        return problems, config.data.problems, report.as_dict()
    if not config.data.arithmetic.train:
        raise ConfigError(
            "data.problems='': nothing to prepare; name a file or a data set, like "
            "--config.data.problems=problems.jsonl"
        )
    found = training_problems(config, workdir, progress, files=())
    read = {"rows": len(found.problems), "counts": {}, "messages": [], "lost": {}}
    return list(found.problems), found.origin, read
