"""A run's responses for a person: question, gold, responses, rewards, reasons.

DIR is a workdir, of which the newest step is shown, or one JSON-lines file of responses, such as
the responses.jsonl of `polaris evaluate`. Works on any run: one that lives, has died or has ended.

Example:
  polaris show runs/4b
  polaris show runs/4b --step 40 --wrong --limit 20
  polaris show runs/4b/before_responses.jsonl --chars 0
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from polaris_jax.commands.flags import parse
from polaris_jax.config import ConfigError
from polaris_jax.records import correct_rewards
from polaris_jax.run.response_rows import (
    ResponseRows,
    groups_of,
    number_of,
    plain_text,
    rollout_paths,
    shortened,
    word,
)
from polaris_jax.run.workdir import ROLLOUTS, rollouts_path
from polaris_jax.system.files import matching
from polaris_jax.system.foreign import printable

LISTED = 12  # steps that an error lists


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("step", -1, "step to show; -1: the newest", flag_values=values)
    flags.DEFINE_bool("wrong", False, "only responses that are not correct", flag_values=values)
    flags.DEFINE_bool("rescued", False, "only groups that were rescued", flag_values=values)
    flags.DEFINE_integer("limit", 5, "problems to show; 0: all", lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "chars", 1500, "characters of a text to show; 0: all", lower_bound=0, flag_values=values
    )


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse(
        "show", argv, doc=__doc__ or "", define=_define, takes_config=False, operand="DIR"
    )
    own = command.flags
    path, what = find_responses(command.workdir, own["step"])
    shown = Selection(
        wrong=own["wrong"], rescued=own["rescued"], limit=own["limit"], chars=own["chars"]
    )
    for text in responses_text(path, what, shown, correct_at=correct_at(path)):
        print(text)
    return 0


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is shown.

    Attributes:
        wrong: only responses that are not correct.
        rescued: only groups that were rescued.
        limit: largest number of groups; 0: all.
        chars: largest number of characters of a text; 0: all.
    """

    wrong: bool = False
    rescued: bool = False
    limit: int = 0
    chars: int = 0


def find_responses(place: epath.Path, step: int) -> tuple[epath.Path, str]:
    """The file to show, and its name for a person.

    Args:
        place: a workdir, or a file of responses.
        step: number of the step; -1: the newest that has a file.

    Raises:
        ConfigError: there is no such file; the text says what there is.
    """
    if place.is_file():
        if step >= 0:
            raise ConfigError(f"--step={step}: {place} is one file; name its workdir")
        return place, place.name
    if not place.is_dir():
        raise ConfigError(f"{place}: there is no such directory or file")
    steps = list(rollout_paths(place))
    if not steps:
        others = [path.name for path in matching(place, "*responses*.jsonl")]
        remedy = (
            f"name a file: {', '.join(f'{place / name}' for name in others)}"
            if others
            else "a run writes them after its first step, unless rollout.save_every=0"
        )
        raise ConfigError(f"{place}: has no rollouts/step_N.jsonl; {remedy}")
    if step >= 0 and step not in steps:
        listed = ", ".join(map(str, steps[-LISTED:]))
        more = f"{len(steps)} steps from {steps[0]} on, the last of them " if steps[LISTED:] else ""
        raise ConfigError(f"--step={step}: {place / ROLLOUTS} has no such step; has {more}{listed}")
    step = steps[-1] if step < 0 else step
    return rollouts_path(place, step), f"step {step}"


def correct_at(path: epath.Path) -> float:
    """The reward from which a response counts as correct.

    By the eval.json that belongs to the file of an evaluation, else by the nearest run.json.
    """
    if (tag := path.name.partition("responses")[0]) != path.name:
        try:
            return float(json.loads((path.parent / f"{tag}eval.json").read_text())["correct_at"])
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            pass  # none, or of a version that did not record it
    for record in (path.parent / "run.json", path.parent.parent / "run.json"):
        try:
            return float(json.loads(record.read_text())["config"]["reward.correct_at"])
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            continue
    return 1.0


def responses_text(
    path: epath.Path, what: str, shown: Selection, *, correct_at: float
) -> Iterator[str]:
    """A summary of a file of responses, then the chosen groups, then how many were left out."""
    rows, counts = ResponseRows(path), _Counts(correct_at)
    kept, left_out = [], 0
    for group in groups_of(rows):
        counts.add(group)
        responses = [row for row in group if not (shown.wrong and counts.correct(row))]
        if not responses or (shown.rescued and not any("rescue_text" in row for row in group)):
            continue
        if shown.limit and len(kept) == shown.limit:
            left_out += 1
        else:
            kept.append((group, responses))
    yield f"{printable(what)}: {counts.text()}"
    if rows.damaged:
        yield f"{rows.damaged} lines cannot be read"
    for group, responses in kept:
        yield ""
        yield from _group_lines(group, responses, counts, shown)
    if not kept and (shown.wrong or shown.rescued):
        yield "none of them is as asked for (--wrong, --rescued)"
    if left_out:
        yield f"\n{left_out} more problems; --limit={shown.limit + left_out} shows all"


class _Counts:
    """What the summary says, over all rows."""

    def __init__(self, correct_at: float) -> None:
        self._correct_at = correct_at
        self._groups = self._responses = self._right = self._cut = self._rescued = 0
        self._rewards: list[float] = []

    def correct(self, row: dict[str, Any]) -> bool:
        """True if the row's response counts as correct."""
        reward = number_of(row.get("reward"))
        return reward is not None and bool(correct_rewards(np.array(reward), self._correct_at))

    def add(self, group: list[dict[str, Any]]) -> None:
        """Counts a group."""
        self._groups += 1
        self._responses += len(group)
        self._right += sum(map(self.correct, group))
        self._cut += sum(row.get("finish_reason") == "length" for row in group)
        self._rescued += any("rescue_text" in row for row in group)
        self._rewards += [x for row in group if (x := number_of(row.get("reward"))) is not None]

    def text(self) -> str:
        """One line."""
        if not self._responses:
            return "no responses"
        mean = sum(self._rewards) / len(self._rewards) if self._rewards else float("nan")
        return (
            f"{self._groups} problems, {self._responses} responses: mean reward {mean:.3f}, "
            f"{self._right} correct, {self._cut} cut by the budget, {self._rescued} groups rescued"
        )


def _group_lines(
    group: list[dict[str, Any]],
    responses: list[dict[str, Any]],
    counts: _Counts,
    shown: Selection,
) -> Iterator[str]:
    first = group[0]
    right = sum(map(counts.correct, group))
    named = f"problem {word(first['problem_id'])}" if "problem_id" in first else "response"
    attempt = f", attempt {word(first['attempt'])}" if first.get("attempt") else ""
    alike = len({json.dumps(row.get("reward")) for row in group}) == 1 and len(group) > 1
    rescued = any("rescue_text" in row for row in group)
    how = ", rescued" if rescued else ", all rewards equal: it teaches nothing" if alike else ""
    if "substituted_by" in first:
        how += f"; a copy of {word(first['substituted_by'])} was trained in its place"
    yield f"=== {named}{attempt}: {right} of {len(group)} correct{how}"
    for name in ("question", "gold"):
        if name in first:
            yield f"{name}:"
            yield from _text_lines(first[name], shown.chars)
    for row in responses:
        yield _heading(row)
        yield from _text_lines(row.get("text", ""), shown.chars)
        if row.get("reason"):
            yield f"  reason: {word(row['reason'])}"
        if "rescue_text" in row:
            yield (
                f"  trained in its place: a response of step {word(row.get('rescue_step'))}, "
                f"reward {word(row.get('rescue_reward'))}"
            )
            yield from _text_lines(row["rescue_text"], shown.chars)


def _heading(row: dict[str, Any]) -> str:
    facts = [f"reward {word(row.get('reward', '-'))}"]
    if "answer" in row:
        facts.append(f"answer {word(row['answer'])}" if row["answer"] is not None else "no answer")
    if "tokens" in row:
        facts.append(f"{word(row['tokens'])} tokens")
    if row.get("finish_reason") == "length":
        facts.append("cut by the budget")
    return f"--- response {word(row.get('sample', row.get('row', '')))}: {', '.join(facts)}"


def _text_lines(value: Any, chars: int) -> Iterator[str]:
    """A text with a mark before each line, so that no text can pass for a line of ours."""
    text = plain_text(value)
    text = shortened(text, chars) if chars else text
    for line in printable(text, lines=True).split("\n"):
        yield f"  | {line}"
