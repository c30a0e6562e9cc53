"""What a run directory holds, read as far as it is there."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from etils import epath

from polaris_jax.metrics import read_metrics
from polaris_jax.report.shapes import line_misfit, misfit
from polaris_jax.system.files import matching

BEFORE_TAG = "before"


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The files of a run; None or empty where one is absent.

    Attributes:
        metrics: lines of metrics.jsonl, one a step.
        timing: lines of timing.jsonl.
        stages: records of stages.json.
        run: run.json.
        calibrate, probe, prepare: what these commands left.
        evaluation: eval.json, as a rule the score after training; `scores.score_name` tells.
        before: before_eval.json, as a rule the score of the weights that training started from.
        others: further tagged evaluations, by tag.
        absent: {file name: why it gives nothing}.
    """

    metrics: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    stages: list[dict[str, Any]]
    run: dict[str, Any] | None
    prepare: dict[str, Any] | None
    calibrate: dict[str, Any] | None
    probe: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    before: dict[str, Any] | None
    others: dict[str, dict[str, Any]]
    absent: dict[str, str]


def read_run(run_dir: epath.Path) -> RunFiles:
    """Everything readable in `run_dir`.

    A damaged file, or one of another shape, counts as absent, with the reason.

    Raises:
        FileNotFoundError: `run_dir` is no directory.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(2, "there is no such run directory", str(run_dir))
    absent: dict[str, str] = {}

    def lines(name: str) -> list[dict[str, Any]]:
        path = run_dir / name
        if not path.exists():
            absent[name] = "not there"
            return []
        try:
            found = read_metrics(path)
        except ValueError as error:
            absent[name] = f"damaged: {error}"
            return []
        for number, line in enumerate(found, 1):
            if wrong := line_misfit(line):
                absent[name] = f"damaged: line {number}: {wrong}"
                return []
        if not found:
            absent[name] = "empty"
        return found

    def document(name: str) -> Any:
        path = run_dir / name
        if not path.exists():
            absent[name] = "not there"
            return None
        try:
            found = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            absent[name] = f"damaged: {error}"
            return None
        if wrong := misfit(name, found):
            absent[name] = f"damaged: {wrong}"
            return None
        return found

    tagged = {
        path.name.removesuffix("_eval.json"): document(path.name)
        for path in matching(run_dir, "*_eval.json")
    }
    before = tagged.pop(BEFORE_TAG, None)
    if not (run_dir / f"{BEFORE_TAG}_eval.json").exists():
        absent[f"{BEFORE_TAG}_eval.json"] = "not there"
    return RunFiles(
        metrics=lines("metrics.jsonl"),
        timing=lines("timing.jsonl"),
        stages=document("stages.json") or [],
        run=document("run.json"),
        prepare=document("prepare.json"),
        calibrate=document("calibrate.json"),
        probe=document("probe.json"),
        evaluation=document("eval.json"),
        before=before,
        others={tag: value for tag, value in tagged.items() if value is not None},
        absent=absent,
    )


def holds_anything(run: RunFiles) -> bool:
    """Whether there was any file of a run, a damaged one included."""
    files = dataclasses.asdict(run)
    absent = files.pop("absent")
    return any(files.values()) or any(why != "not there" for why in absent.values())
