"""Problems from anywhere to the workdir's `problems.parquet`, every row left out counted."""

from __future__ import annotations

from typing import Any

from etils import epath

from polaris_jax.assemble import load_base_tokenizer, training_problems
from polaris_jax.config import ConfigError, RunConfig
from polaris_jax.data.filters import drop_long_prompts
from polaris_jax.data.problems import NAMED_ROWS, read_problems, write_problems
from polaris_jax.records import Problem
from polaris_jax.run.record import refuse_other_run
from polaris_jax.run.workdir import ensure_workdir, write_json
from polaris_jax.system.progress import Progress


def prepare(config: RunConfig, workdir: epath.Path, *, progress: Progress) -> dict[str, Any]:
    """Reads, validates, deduplicates and filters; returns what it wrote to prepare.json.

    Raises:
        ConfigError: no source, no problem left, or the workdir holds another config's run.
    """
    refuse_other_run(workdir, config, sections=("model", "data", "warmstart"))
    ensure_workdir(workdir)
    problems, origin, read = _read(config, workdir, progress)
    tokenizer = load_base_tokenizer(config)
    kept, too_long = drop_long_prompts(
        problems,
        tokenizer,
        suffix=config.data.prompt_suffix,
        max_prompt_tokens=config.data.max_prompt_tokens,
    )
    if not kept:
        raise ConfigError(
            f"data.max_prompt_tokens={config.data.max_prompt_tokens}: none of the {len(problems)} "
            f"problems of {origin} has a prompt that short; raise it"
        )
    write_problems(kept, workdir / "problems.parquet")
    if too_long:
        some = ", ".join(
            f"{name} ({tokens})" for name, tokens in list(too_long.items())[:NAMED_ROWS]
        )
        more = ", ..." if len(too_long) > NAMED_ROWS else ""
        progress.line(
            f"left out: {len(too_long)} prompts over data.max_prompt_tokens="
            f"{config.data.max_prompt_tokens}: {some}{more}"
        )
        read["counts"]["prompt_too_long"] = len(too_long)
    summary = read | {"source": origin, "kept": len(kept)}
    write_json(workdir / "prepare.json", summary)
    progress.line(f"prepared {len(kept)} problems from {origin} -> problems.parquet")
    return summary


def _read(
    config: RunConfig, workdir: epath.Path, progress: Progress
) -> tuple[list[Problem], str, dict[str, Any]]:
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
    problems, origin = training_problems(config, workdir, progress, prepared=False)
    return problems, origin, {"rows": len(problems), "counts": {}, "messages": []}
