"""What a table's finished runs show: ablations.json and ablations.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from polaris_jax.ablate.outcome import Outcome, chosen_value, figures_by_value
from polaris_jax.ablate.statistics import Paired, paired, spread
from polaris_jax.ablate.table import Table


def summarise(table: Table, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The content of ablations.json: each arm's figures, and its difference to the first arm.

    Args:
        table: the table.
        outcomes: its finished runs; arms without a counted one are left out.
    """
    counted = [o for o in outcomes if o.value is None]
    figures = {
        arm.name: {o.pair: o.figure(table.figure) for o in counted if o.arm == arm.name}
        for arm in table.arms
    }
    arms = []
    for arm in table.arms:
        own = [o for o in counted if o.arm == arm.name]
        if not own:
            continue
        against = table.against(arm)
        difference = None if against is None else paired(figures[arm.name], figures[against])
        arms.append(
            {
                "name": arm.name,
                "overrides": {name: _plain(value) for name, value in arm.overrides.items()},
                "tuned": _tuned(table, arm.name, outcomes),
                "figure": dataclasses.asdict(spread(list(figures[arm.name].values()))),
                "last": dataclasses.asdict(spread([o.figure("last") for o in own])),
                "against": against,
                "difference": None
                if difference is None
                else dataclasses.asdict(difference) | {"sign_p": difference.sign_p},
                "collapsed": sum(o.figure("last") < table.collapsed_below * o.before for o in own),
                "sampled_tokens": sum(o.sampled_tokens for o in own) / len(own),
                "total_tokens": sum(o.total_tokens for o in own) / len(own),
                "updates": sum(o.updates for o in own) / len(own),
            }
        )
    return {
        "figure": table.figure,
        "against": table.arms[0].name,
        "config": table.config,
        "bases": list(table.bases),
        "runs": len(table.runs()),
        "finished": len(counted),
        "arms": arms,
        "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
    }


def _tuned(table: Table, arm: str, outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """The tuned field, the value chosen and each value's figures; None if nothing is tuned."""
    if table.tuning is None:
        return None
    figures = figures_by_value(table, arm, outcomes)
    values = list(figures)
    chosen = chosen_value(table, arm, outcomes)
    return {
        "field": table.tuning.field,
        "value": chosen,
        "at_edge": _at_edge(chosen, values),
        "figures": [[v, dataclasses.asdict(spread(found))] for v, found in figures.items()],
    }


def _at_edge(chosen: Any, values: Sequence[Any]) -> bool:
    """True if the value chosen is the least or the greatest of several numbers."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) > 1 and chosen in (min(numbers), max(numbers))


def trained(summary: Mapping[str, Any]) -> bool:
    """False if the runs score bases alone, without any training.

    Args:
        summary: the content of ablations.json.
    """
    return any(arm["updates"] or arm["total_tokens"] for arm in summary["arms"])


def as_markdown(summary: Mapping[str, Any], *, title: str, failures: Mapping[str, str]) -> str:
    """The content of ablations.md.

    Args:
        summary: the content of ablations.json.
        title: name of the table.
        failures: {name of a run: why it failed}.
    """
    first = summary["against"]
    figure = {"mean": "mean of a run's held-out scores", "last": "last held-out score"}
    lines = [
        f"# {title}",
        "",
        f"Figure, declared in the table: {figure[summary['figure']]}, in percent. Differences are "
        f"those to `{first}`, or to the arm named beside them, paired by base and seed, with the "
        "standard error over the pairs, the 95% interval of Student's t, and how many pairs are "
        "above 0.",
        "",
        f"{summary['finished']} of {summary['runs']} runs are finished, from "
        f"{len(summary['bases'])} bases.",
        "",
    ]
    names = ["arm", "runs", "figure", "difference", "95%", "above 0"]
    if trained(summary):
        names += ["last score", "collapsed", "tokens", "updates"]
        lines += [
            "Tokens are all that a run sampled to learn, temperature resets and the commands "
            "before training included. A run has collapsed if its last score is under a set share "
            "of its base's.",
            "",
        ]
    lines += [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for arm in summary["arms"]:
        difference = None
        if arm["difference"] is not None:
            fields = {k: v for k, v in arm["difference"].items() if k != "sign_p"}
            difference = Paired(**fields)
        cells = [
            f"`{arm['name']}`",
            str(arm["figure"]["n"]),
            _percent(arm["figure"]),
            *_difference(difference, arm["against"] if arm["against"] != first else None),
            _percent(arm["last"]),
            str(arm["collapsed"]),
            f"{arm['total_tokens']:,.0f}",
            f"{arm['updates']:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells[: len(names)])} |")
    lines += _tuning_lines(summary["arms"])
    if failures:
        lines += ["", "Failed:", ""]
        lines += [f"- `{name}`: {' '.join(reason.split())}" for name, reason in failures.items()]
    return "\n".join([*lines, ""])


def _tuning_lines(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """The values that were tried, on bases and seeds that are not counted."""
    tuned = [(arm["name"], arm["tuned"]) for arm in arms if arm["tuned"] is not None]
    if not tuned:
        return []
    field, values = tuned[0][1]["field"], [value for value, _ in tuned[0][1]["figures"]]
    lines = [
        "",
        f"`{field}` of each arm is the best of {', '.join(map(str, values))}, by the figure over "
        f"{tuned[0][1]['figures'][0][1]['n']} runs from bases that are not counted above:",
        "",
        f"| arm | {' | '.join(map(str, values))} | taken |",
        f"|---|{'---|' * len(values)}---|",
    ]
    for name, found in tuned:
        cells = [_percent(figure) for _, figure in found["figures"]]
        edge = " (edge of the grid)" if found["at_edge"] else ""
        lines.append(f"| `{name}` | {' | '.join(cells)} | {found['value']}{edge} |")
    return lines


def _percent(found: Mapping[str, Any]) -> str:
    error = "" if found["stderr"] is None else f" ± {100 * found['stderr']:.1f}"
    return f"{100 * found['mean']:.1f}{error}"


def _difference(found: Paired | None, against: str | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    other = f" to `{against}`" if against else ""
    error = "" if found.stderr is None else f" ± {100 * found.stderr:.1f}"
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    return [f"{100 * found.mean:+.1f}{error}{other}", interval, f"{found.positive} of {found.n}"]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
