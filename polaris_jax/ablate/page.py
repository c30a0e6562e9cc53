"""What a table's finished runs show: ablations.json and ablations.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from polaris_jax.ablate.statistics import Pair, Paired, paired, spread
from polaris_jax.ablate.table import Table


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
    """

    arm: str
    base: str
    seed: int
    before: float
    scores: tuple[tuple[int, float], ...]
    sampled_tokens: int
    updates: int

    @property
    def pair(self) -> Pair:
        """What it is paired by."""
        return self.base, self.seed

    def figure(self, name: str) -> float:
        """The mean of its held-out scores, or the last."""
        values = [score for _, score in self.scores]
        return values[-1] if name == "last" else sum(values) / len(values)


def summarise(table: Table, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The content of ablations.json: each arm's figures, and its difference to the first arm.

    Args:
        table: the table.
        outcomes: its finished runs; arms without one are left out.
    """
    first = table.arms[0].name
    figures = {
        arm.name: {o.pair: o.figure(table.figure) for o in outcomes if o.arm == arm.name}
        for arm in table.arms
    }
    arms = []
    for arm in table.arms:
        own = [o for o in outcomes if o.arm == arm.name]
        if not own:
            continue
        difference = None if arm.name == first else paired(figures[arm.name], figures[first])
        arms.append(
            {
                "name": arm.name,
                "overrides": {name: _plain(value) for name, value in arm.overrides.items()},
                "figure": dataclasses.asdict(spread(list(figures[arm.name].values()))),
                "last": dataclasses.asdict(spread([o.figure("last") for o in own])),
                "difference": None
                if difference is None
                else dataclasses.asdict(difference) | {"sign_p": difference.sign_p},
                "collapsed": sum(o.figure("last") < table.collapsed_below * o.before for o in own),
                "sampled_tokens": sum(o.sampled_tokens for o in own) / len(own),
                "updates": sum(o.updates for o in own) / len(own),
            }
        )
    return {
        "figure": table.figure,
        "against": first,
        "config": table.config,
        "bases": list(table.bases),
        "runs": len(table.runs()),
        "finished": len(outcomes),
        "arms": arms,
        "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
    }


def as_markdown(summary: Mapping[str, Any], *, title: str, failures: Mapping[str, str]) -> str:
    """The content of ablations.md.

    Args:
        summary: the content of ablations.json.
        title: name of the table.
        failures: {name of a run: why it failed}.
    """
    figure = {"mean": "mean of a run's held-out scores", "last": "last held-out score"}
    lines = [
        f"# {title}",
        "",
        f"Figure, declared in the table: {figure[summary['figure']]}, in percent. Differences are "
        f"those to `{summary['against']}`, paired by base and seed, with the standard error over "
        "the pairs, the 95% interval of Student's t, and how many pairs are above 0.",
        "",
        f"{summary['finished']} of {summary['runs']} runs are finished, from "
        f"{len(summary['bases'])} bases.",
        "",
        "| arm | runs | figure | difference | 95% | above 0 | last score | collapsed | tokens | "
        "updates |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in summary["arms"]:
        difference = None
        if arm["difference"] is not None:
            fields = {k: v for k, v in arm["difference"].items() if k != "sign_p"}
            difference = Paired(**fields)
        cells = [
            f"`{arm['name']}`",
            str(arm["figure"]["n"]),
            _percent(arm["figure"]),
            *_difference(difference),
            _percent(arm["last"]),
            str(arm["collapsed"]),
            f"{arm['sampled_tokens']:,.0f}",
            f"{arm['updates']:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if failures:
        lines += ["", "Failed:", ""]
        lines += [f"- `{name}`: {reason}" for name, reason in failures.items()]
    return "\n".join([*lines, ""])


def _percent(found: Mapping[str, Any]) -> str:
    error = "" if found["stderr"] is None else f" ± {100 * found['stderr']:.1f}"
    return f"{100 * found['mean']:.1f}{error}"


def _difference(found: Paired | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    error = "" if found.stderr is None else f" ± {100 * found.stderr:.1f}"
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    return [f"{100 * found.mean:+.1f}{error}", interval, f"{found.positive} of {found.n}"]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
