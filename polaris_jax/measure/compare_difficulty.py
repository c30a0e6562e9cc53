"""`polaris calibrate --compare A B`: two models' pass rates, read, compared and drawn."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from polaris_jax.config import ConfigError
from polaris_jax.data.problems import read_problems
from polaris_jax.report.comparisons import difficulty_comparison
from polaris_jax.run.workdir import write_json
from polaris_jax.stages.accuracy_log import read_accuracy_log
from polaris_jax.stages.comparison import PassRates, compare_pass_rates, rollouts_of
from polaris_jax.system.foreign import RECORD_BYTES, ForeignFileError, read_json

RATED = "difficulty.parquet"
FORMS = (
    f"name a workdir that `polaris calibrate` has filled, a {RATED}, or an accuracy log in the "
    "original's format (.jsonl)"
)


def compare_difficulty(
    sources: Sequence[epath.Path],
    names: Sequence[str],
    out: epath.Path,
    *,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Two models' pass rates side by side -> difficulty_compared.json, difficulty_compared.png.

    Args:
        sources: two workdirs, difficulty.parquet files or accuracy logs.
        names: a name for each.
        out: directory of the two files; made if it is not there.
        say: gets lines for a person.

    Raises:
        ConfigError: a source has no pass rates.
    """
    first, second = map(read_pass_rates, sources)
    summary = compare_pass_rates(first, second)
    for model, name, source in zip(summary["models"], names, sources, strict=True):
        model |= {"name": name, "source": str(source)}
        left_out = ", ".join(
            f"{model[fact]} {fact.replace('_', ' ')}" for fact in model["left_out"] if model[fact]
        )
        say(
            f"{name}: {model['problems']} problems, {model['n']} rollouts each, {model['shape']}, "
            f"mean {model['mean']:.1%}{f'; left out: {left_out}' if left_out else ''}"
        )
        del model["left_out"]
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "difficulty_compared.json", summary)
    difficulty_comparison(summary, out / "difficulty_compared.png")
    if not summary["common"]:
        say("no problem has the same id in both: only the histograms compare")
    else:
        solved, error = summary["solved"], summary["difference_stderr"] or 0.0
        say(
            f"{summary['common']} problems in common: both solve {solved['both']} at least once, "
            f"only {names[0]} {solved['first_only']}, only {names[1]} {solved['second_only']}, "
            f"neither {solved['neither']}; {names[1]} is {100 * summary['difference']:+.1f} +- "
            f"{100 * error:.1f} points on them"
        )
    say(f"figure: {out / 'difficulty_compared.png'}")
    return summary


def read_pass_rates(source: epath.Path) -> PassRates:
    """The pass rates of a workdir, a difficulty.parquet file or an accuracy log.

    Args:
        source: the path. In an accuracy log a problem's rate is the mean over its visits.

    Raises:
        ConfigError: there are none.
    """
    if source.is_dir():
        if not (source / RATED).exists():
            raise ConfigError(f"--compare={source}: has no {RATED}; {FORMS}")
        source = source / RATED
    return _of_log(source) if source.suffix == ".jsonl" else _of_problems(source)


def _of_problems(path: epath.Path) -> PassRates:
    if path.suffix != ".parquet":
        raise ConfigError(f"--compare={path}: neither .parquet nor .jsonl; {FORMS}")
    problems, report = read_problems(path, field="--compare")
    rates = {p.id: p.pass_rate for p in problems if p.pass_rate is not None}
    if not rates:
        raise ConfigError(
            f"--compare={path}: none of its {len(problems)} rows has a pass_rate; {FORMS}"
        )
    left_out = {"rows": report.rows - report.kept, "without_pass_rate": len(problems) - len(rates)}
    n = _recorded_n(path) or rollouts_of(rates.values())
    return PassRates(rates, n, {**left_out, "left_out": list(left_out)})


def _recorded_n(path: epath.Path) -> int | None:
    """`n` of the calibrate.json that belongs to a difficulty.parquet; None if it is not known."""
    record = path.with_name(re.sub(rf"{re.escape(RATED)}$", "calibrate.json", path.name))
    if record == path or not record.exists():
        return None
    try:
        n = read_json(record, most_bytes=RECORD_BYTES).get("n")
    except ForeignFileError:
        return None
    return n if type(n) is int and n > 0 else None


def _of_log(path: epath.Path) -> PassRates:
    log = read_accuracy_log(path)
    if not log.scores:
        why = f" (line {log.skipped[0].line}: {log.skipped[0].reason})" if log.skipped else ""
        raise ConfigError(f"--compare={path}: no line of an accuracy log{why}; {FORMS}")
    rates = {str(i): sum(scores) / len(scores) for i, scores in log.scores.items()}
    n = rollouts_of(score for scores in log.scores.values() for score in scores)
    left_out = {"unusable_lines": len(log.skipped)}
    visits = sum(map(len, log.scores.values()))
    return PassRates(rates, n, {**left_out, "visits": visits, "left_out": list(left_out)})
