"""Makes configs/expected/NAME.json from recorded runs: what a run of another seed should give.

usage: expected_curve.py NAME PAGE.md RUN RUN RUN ..   of the metrics of three finished workdirs or
                                                       more, which a page of docs/results is about
       expected_curve.py tiny_cpu SEEDS.json           of the gains that `make demo-seeds` records

NAME is a config's, with its target if it has one, as in demo:plain. A number is the mean of a
metric over half of the steps, or the last held-out score. The bands are prediction intervals of
Student's t for one more run, so wide that all numbers of that run lie in theirs 19 times of 20.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from polaris_jax.commands.config_file import load_config
from polaris_jax.config import binding_fields, build_config, config_fields
from polaris_jax.metrics import read_metrics
from polaris_jax.run.reference import (
    EXPECTED,
    FILES,
    GAIN,
    deciding_fields,
    evaluation_fields,
    mean_of,
)

ROOT = Path(__file__).resolve().parents[1]
LEVEL = 0.95
LEAST_SEEDS = 3
BLOCKS = 2  # halves of a run: few seeds cannot say much of many numbers
METRICS = ("rollout/reward_mean",)
SCORE = "eval/avg@"


def band(values: Sequence[float], *, of: int) -> tuple[float, float]:
    """The prediction interval of one more value, for one of `of` numbers of a run.

    Args:
        values: one a seed, at least 3.
        of: how many intervals shall all hold at once, with probability LEVEL (Bonferroni).

    Source: the interval for a future observation of a normal sample, mean +- t s sqrt(1 + 1/n).
    """
    n = len(values)
    if n < LEAST_SEEDS:
        raise ValueError(f"{n} seeds: a band needs at least {LEAST_SEEDS}; record more runs")
    reach = float(student.ppf(1 - (1 - LEVEL) / (2 * of), n - 1))
    reach *= statistics.stdev(values) * math.sqrt(1 + 1 / n)
    return statistics.fmean(values) - reach, statistics.fmean(values) + reach


def bands_of(numbers: Sequence[tuple[str, int, int, Sequence[float]]]) -> list[dict[str, Any]]:
    """Bands of (name, first step, last step, values); shares end at 0 and 1, a gain at -1 and 1."""
    found = []
    for name, first, last, values in numbers:
        low, high = band(values, of=len(numbers))
        low = max(low, -1.0 if name == GAIN else 0.0)
        row = {"name": name, "first_step": first, "last_step": last, "values": list(values)}
        found.append(row | {"low": round(low, 4), "high": round(min(high, 1.0), 4)})
    return found


def record_of(name: str) -> dict[str, Any]:
    """config and binding as run.json would have them for a config of the package."""
    config = build_config(load_config(name))
    fields = json.loads(json.dumps(config_fields(config)))
    return {"config": fields, "binding": sorted(binding_fields(config))}


def of_runs(name: str, page: str, workdirs: Sequence[Path]) -> dict[str, Any]:
    """The record of finished runs that differ by their seeds alone.

    Args:
        name: name of their config.
        page: the page that is about them.
        workdirs: their directories.

    Raises:
        ValueError: they are not runs of the config, or differ in their commits or steps.
    """
    wanted = _own(deciding_fields(record_of(name))), evaluation_fields(record_of(name))
    seeds, commits, lines, first_fields = [], set(), [], None
    for workdir in workdirs:
        record = json.loads((workdir / "run.json").read_text())
        fields = deciding_fields(record)
        if (_own(fields), evaluation_fields(record)) != wanted:
            raise ValueError(f"{workdir}: is no run of {name}")
        if fields != (first_fields := first_fields or fields):
            raise ValueError(f"{workdir}: began from other weights or prompts than {workdirs[0]}")
        if record["starts"][-1].get("ended") != "finished":
            raise ValueError(f"{workdir}: has not finished")
        seeds.append(record["config"]["seed"])
        commits.add(record["commit"])
        lines.append({line["step"]: line for line in read_metrics(workdir / "metrics.jsonl")})
    (steps,) = {max(by_step) + 1 for by_step in lines}
    (commit,) = commits
    wanted_numbers = [
        (metric, k * steps // BLOCKS, (k + 1) * steps // BLOCKS - 1)
        for metric in METRICS
        for k in range(BLOCKS)
    ]
    wanted_numbers += [
        (metric, steps - 1, steps - 1)
        for metric in sorted(lines[0][steps - 1])
        if metric.startswith(SCORE)
    ]
    numbers = []
    for metric, first, last in wanted_numbers:
        values = [mean_of(by_step, metric, first, last) for by_step in lines]
        if None in values:
            raise ValueError(f"{metric}: a run lacks it in steps {first} to {last}")
        numbers.append((metric, first, last, values))
    made = expected(name, seeds, commit, bands_of(numbers), source=page)
    return made | {"fields": first_fields}


def _own(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config alone: not those of its files, nor of a base that a script makes."""
    return {n: value for n, value in fields.items() if n not in (*FILES, "warmstart.steps")}


def of_demo_seeds(name: str, path: Path) -> dict[str, Any]:
    """The record of `make demo-seeds`: the gain of the recipe's arm."""
    found = json.loads(path.read_text())
    steps = sum(stage.steps for stage in build_config(load_config(name)).stages)
    gains = [row["polaris_gain"] for row in found["rows"]]
    bands = bands_of([(GAIN, 0, steps - 1, gains)])
    seeds = [row["seed"] for row in found["rows"]]
    made = expected(name, seeds, found["commit"], bands, source=str(path))
    return made | {"date": found["date"], "machine": found["machine"]}


def expected(
    name: str, seeds: Sequence[int], commit: str, bands: list[dict[str, Any]], *, source: str
) -> dict[str, Any]:
    """The content of the file."""
    record = record_of(name)
    return {
        "config": name,
        "seeds": list(seeds),
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "source": source,
        "level": LEVEL,
        "fields": deciding_fields(record),
        "evaluation": evaluation_fields(record),
        "bands": bands,
    }


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    name, *places = sys.argv[1:]
    if places[0].endswith(".json"):
        found = of_demo_seeds(name, Path(places[0]))
    else:
        found = of_runs(name, places[0], [Path(place) for place in places[1:]])
    path = ROOT / "configs" / EXPECTED / f"{name.replace(':', '_')}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
