"""What a finished run of a table has shown, and the value that an arm's tuning has chosen."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from polaris_jax.ablate.statistics import Pair
from polaris_jax.ablate.table import Run, Table
from polaris_jax.config import ConfigError
from polaris_jax.run.owner import lock_name
from polaris_jax.run.standing import read_standing
from polaris_jax.run.workdir import write_json

FINISHED = "ablation.json"
ASKED = "asked"  # key of the flags in that file
TAKEN = "ablate"  # the lock of the worker that has a run


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        arm: name of its arm.
        base: name of its base.
        seed: its seed.
        before: its base's held-out score, in [0, 1].
        scores: (step, held-out score) in the order of steps.
        sampled_tokens: response tokens of its training rollouts.
        updates: updates that it made.
        total_tokens: all response tokens that it sampled to learn: training rollouts, temperature
            resets, and the commands before training.
        after: the score of its last weights by `polaris evaluate`, if the table asks for it.
        value: the value of the tuned field that it tried; None for a counted run.
    """

    arm: str
    base: str
    seed: int
    before: float
    scores: tuple[tuple[int, float], ...]
    sampled_tokens: int
    updates: int
    total_tokens: int = 0
    after: float | None = None
    value: Any = None

    @property
    def pair(self) -> Pair:
        """What it is paired by."""
        return self.base, self.seed

    def figure(self, name: str) -> float:
        """The mean of its held-out scores, or the last."""
        values = [score for _, score in self.scores]
        return values[-1] if name == "last" else sum(values) / len(values)


def figures_by_value(table: Table, arm: str, outcomes: Sequence[Outcome]) -> dict[Any, list[float]]:
    """{value: figures of its tuning runs} of an arm, in the table's order of values."""
    if table.tuning is None:
        return {}
    named = next(a for a in table.arms if a.name == arm)
    own = [o for o in outcomes if o.arm == (named.tuned_as or arm) and o.value is not None]
    return {
        value: [o.figure(table.figure) for o in own if o.value == value]
        for value in table.tuning.values
    }


def chosen_value(table: Table, arm: str, outcomes: Sequence[Outcome]) -> Any:
    """The value with the highest mean figure, the first of several; None if none is tuned.

    Raises:
        ValueError: a value has no finished run.
    """
    figures = figures_by_value(table, arm, outcomes)
    for value, found in figures.items():
        if not found:
            raise ValueError(f"arm {arm!r}: no tuning run with {value} is finished")
    return max(figures, key=lambda v: sum(figures[v]) / len(figures[v]), default=None)


def write_outcome(workdir: epath.Path, outcome: Outcome, asked: Sequence[str] = ()) -> None:
    """Leaves the outcome in the run's workdir, and the flags that the table gave to the run."""
    fields = {**vars(outcome), "scores": [list(s) for s in outcome.scores], ASKED: list(asked)}
    write_json(workdir / FINISHED, fields)


def refuse_others(workdir: epath.Path, asked: Sequence[str], file: str = FINISHED) -> None:
    """Raises ConfigError if the run in `workdir` was given other flags than `asked`.

    Does nothing if its flags are not known: `polaris train` itself or an earlier version ran it.

    Args:
        workdir: a finished run, or a scored base.
        asked: the flags that the table gives it now.
        file: the file in it that has those of then.
    """
    then = json.loads((workdir / file).read_text()).get(ASKED)
    if not then or sorted(then) == sorted(asked):
        return
    former = [word for word in then if word not in asked]
    present = [word for word in asked if word not in then]
    raise ConfigError(
        f"{workdir}: it was made with {' '.join(former) or 'fewer flags'}, and the table now gives "
        f"it {' '.join(present) or 'fewer'}; name another directory, or delete that one to repeat "
        "the run"
    )


def outcome_of(
    workdir: epath.Path, run: Run, *, before: float | None = None, after: float | None = None
) -> Outcome:
    """The outcome of a finished training run, from its files.

    Args:
        workdir: the run's directory.
        run: the run.
        before: the base's score; None: the run's own before its first update.
        after: the score of the last weights.

    Raises:
        ValueError: the run has no held-out score after an update.
    """
    counts = json.loads((workdir / "run.json").read_text()).get("counts", {})
    scores = list(_scores(workdir))
    if not any(step >= 0 for step, _ in scores):
        raise ValueError(
            f"{workdir}: the run ended without a held-out score; lower evaluate.every_steps, or "
            "give it more steps or tokens"
        )
    steps = 1 + max(step for step, _ in scores)
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        steps = max(steps, 1 + json.loads(line)["step"])
    sampled = counts.get("sampled_tokens", 0)
    return Outcome(
        arm=run.arm,
        base=run.base,
        seed=run.seed,
        before=next(score for step, score in scores if step < 0) if before is None else before,
        scores=tuple((step, score) for step, score in scores if step >= 0),
        sampled_tokens=sampled,
        updates=steps - counts.get("steps_without_update", 0),
        total_tokens=sampled + counts.get("reset_tokens", 0) + tokens_before(workdir, run),
        after=after,
        value=run.value,
    )


def tokens_before(workdir: epath.Path, run: Run) -> int:
    """Response tokens that the commands before training have sampled."""
    files = [workdir / f"{command}.json" for command in run.before if command != "prepare"]
    return sum(json.loads(path.read_text())["sampled_tokens"] for path in files)


def _scores(workdir: epath.Path) -> Iterator[tuple[int, float]]:
    """(step, held-out score) of a run; step -1 is before its first update."""
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if re.fullmatch(r"eval/avg@\d+", name) and value is not None:
                yield row["step"], value


def read_outcome(out: epath.Path, run: Run) -> Outcome | None:
    """A finished run's outcome; None if it is not finished.

    A run that was trained by `polaris train` itself has an outcome, too. One that a worker has
    begun is finished when the worker says so: its last weights may still have to be scored.
    """
    workdir = out / run.name
    if (workdir / FINISHED).exists():
        return read_outcome_at(out, run.name)
    taken = (workdir / lock_name(TAKEN)).exists()
    if not taken and (workdir / "run.json").exists() and read_standing(workdir).finished:
        return outcome_of(workdir, run, after=_score_after(workdir))
    return None


def _score_after(workdir: epath.Path) -> float | None:
    """The score of the last weights, if `polaris evaluate --checkpoint=latest` has taken it."""
    if not (path := workdir / "eval.json").exists():
        return None
    found = json.loads(path.read_text())
    return float(found["avg@k"]) if found["checkpoint"] == "latest" else None


def read_outcome_at(out: epath.Path, name: str) -> Outcome:
    """The outcome of the finished run of that name."""
    found = json.loads((out / name / FINISHED).read_text())
    found.pop(ASKED, None)
    return Outcome(**found | {"scores": tuple((step, score) for step, score in found["scores"])})
