"""Several runs beside one another: names, colors, what their configs differ in, who is ahead."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from polaris_jax.ablate.statistics import paired
from polaris_jax.config import ConfigError
from polaris_jax.report.comparisons import COLORS
from polaris_jax.report.result import difference, plural, result_sentence, score_interval
from polaris_jax.report.run_files import RunFiles
from polaris_jax.report.style import GREY, INK
from polaris_jax.report.summary import DASH, not_comparable, quarters
from polaris_jax.system.foreign import printable

RUN_COLORS = (*COLORS, INK, GREY)
MOST_RUNS = len(RUN_COLORS)
SAME_WEIGHTS = "both of one checkpoint"  # each run has its own `latest`
# Facts of run.json that are compared beside the config.
FACTS = ("commit", "devices", "processes", "problem_set", "deterministic")
MOST_CHARS = 120


@dataclasses.dataclass(frozen=True)
class NamedRun:
    """A run with what tells it from others.

    Attributes:
        name: name for people, printable.
        color: color in all figures.
        place: its directory.
        files: its files.
    """

    name: str
    color: str
    place: epath.Path
    files: RunFiles


def run_names(places: Sequence[epath.Path], names: Sequence[str] = ()) -> tuple[str, ...]:
    """A name for each run: those given, or the parts of the paths that tell them apart.

    Raises:
        ConfigError: too many runs, another number of names, or two equal names or directories.
    """
    if len(places) > MOST_RUNS:
        raise ConfigError(
            f"{len(places)} runs: a report overlays at most {MOST_RUNS}, which have colors that "
            "can be told apart; name fewer directories"
        )
    if names and len(names) != len(places):
        raise ConfigError(
            f"--names={','.join(names)}: {len(names)} names for {plural(len(places), 'run')}; give "
            "one each"
        )
    found = tuple(map(printable, names or _different_parts(places)))
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise ConfigError(f"{twice!r}: two runs have this name; give --names that differ")
    return found


def _different_parts(places: Sequence[epath.Path]) -> list[str]:
    """`a` and `b` of x/a/run and x/b/run: the path without what all have in common."""
    parts = [[p for p in place.resolve().parts if p != "/"] for place in places]
    if len(parts) == 1:
        return [parts[0][-1] if parts[0] else "run"]
    if len({tuple(own) for own in parts}) < len(parts):
        return ["/".join(own) for own in parts]
    while len({own[0] for own in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [own[1:] for own in parts]
    while len({own[-1] for own in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [own[:-1] for own in parts]
    return ["/".join(own) for own in parts]


def differing_fields(runs: Sequence[NamedRun]) -> list[tuple[str, ...]]:
    """(field, value in each run) of every field of the configs that is not the same in all.

    Facts of run.json (commit, devices, ..) and versions of packages come after the fields.
    """
    rows = []
    for part in (_config, _facts):
        tables = [part(run.files.run or {}) for run in runs]
        for field in sorted({name for table in tables for name in table}):
            values = [_text(table[field]) if field in table else DASH for table in tables]
            if len(set(values)) > 1:
                rows.append((field, *values))
    return rows


def _config(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return record.get("config") or {}


def _facts(record: Mapping[str, Any]) -> Mapping[str, Any]:
    versions = record.get("versions") or {}
    return {name: record[name] for name in FACTS if record.get(name) is not None} | {
        f"version of {name}": value for name, value in versions.items()
    }


def _text(value: Any) -> str:
    text = printable(value if isinstance(value, str) and value else json.dumps(value))
    return text if len(text) <= MOST_CHARS else f"{text[:MOST_CHARS]} ..."


def runs_sentence(runs: Sequence[NamedRun]) -> str:
    """The result of several runs in one sentence, with an interval if there is one.

    Runs that differ in their seed alone are samples of one thing: their mean has an interval of
    Student's t. Two others have a difference; more are listed, the highest first.
    """
    if len(runs) == 1:
        return result_sentence(runs[0].files)
    scores = [(run.name, run.files.evaluation) for run in runs]
    known = [(name, score) for name, score in scores if score is not None]
    if len(known) < len(runs):
        return _rewards(runs)
    (_, first), *others = known
    reasons = [not_comparable(first, score) for _, score in others]
    reasons = [r for r in (_without_weights(reason) for reason in reasons) if r]
    if reasons:
        return f"The scores of the runs are not comparable: {reasons[0]}."
    if are_seeds(runs):
        return _seeds(known)
    if len(known) == 2:
        return _two(known)
    known.sort(key=lambda pair: -pair[1]["avg@k"])
    listed = ", ".join(f"{name} {_share(score)}" for name, score in known)
    return f"Held-out avg@{first['k']}, the highest first, with 95% intervals: {listed}."


def are_seeds(runs: Sequence[NamedRun]) -> bool:
    """True if the configs are known and differ in the seed alone."""
    if len(runs) < 2 or any(not _config(run.files.run or {}) for run in runs):
        return False
    rows = [tuple(_config(run.files.run or {}).items()) for run in runs]
    others = [{k: v for k, v in row if k != "seed"} for row in rows]
    seeds = [dict(row).get("seed") for row in rows]
    return all(other == others[0] for other in others) and len(set(seeds)) == len(seeds)


def _without_weights(reason: str) -> str:
    """A reason without the remark on equal weights: `latest` of two runs is not one checkpoint."""
    return ", ".join(part for part in reason.split(", ") if part != SAME_WEIGHTS)


def _seeds(known: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    values = {(name, 0): float(score["avg@k"]) for name, score in known}
    mean = paired(values, dict.fromkeys(values, 0.0))
    assert mean is not None
    interval = ""
    if mean.stderr and mean.low is not None and mean.high is not None:
        low, high = max(0.0, mean.low), min(1.0, mean.high)
        interval = f", 95% interval {low:.1%} to {high:.1%} over runs"
    each = ", ".join(f"{name} {score['avg@k']:.1%}" for name, score in known)
    return (
        f"{len(known)} runs that differ in the seed alone solve {mean.mean:.1%} of the held-out "
        f"problems on average{interval} ({each})."
    )


def _two(known: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    (one, first), (two, second) = known
    gain, interval, is_paired = difference(first, second)
    text = (
        f"Held-out avg@{first['k']}: {one} {first['avg@k']:.1%}, {two} {second['avg@k']:.1%}; "
        f"{two} - {one} is {100 * gain:+.1f} points"
    )
    if interval is None:
        return f"{text}, without an interval."
    low, high = interval
    unsure = ", so neither is shown to be better" if low <= 0 <= high else ""
    how = "paired by problem" if is_paired else "over problems; two runs say nothing on seeds"
    return f"{text}, 95% interval {100 * low:+.1f} to {100 * high:+.1f}{unsure} ({how})."


def _rewards(runs: Sequence[NamedRun]) -> str:
    missing = [run.name for run in runs if run.files.evaluation is None]
    rewards = [(run.name, quarters(run.files.metrics)[1]) for run in runs]
    listed = ", ".join(f"{n} {DASH if value is None else f'{value:.1%}'}" for n, value in rewards)
    return (
        f"Mean reward of each run's last quarter of steps: {listed}. There is no interval, because "
        f"{', '.join(missing)} {'has' if len(missing) == 1 else 'have'} no eval.json."
    )


def _share(score: Mapping[str, Any]) -> str:
    interval = score_interval(score)
    spread = "" if interval is None else f" ({interval[0]:.1%} to {interval[1]:.1%})"
    return f"{score['avg@k']:.1%}{spread}"
