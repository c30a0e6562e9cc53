"""Where a run stands, by its files: for `polaris status`, and for the last lines of a run.

Only reads. A file that is missing, torn or damaged leaves its part unknown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from polaris_jax.run.record import RECORD
from polaris_jax.system.files import matching
from polaris_jax.system.foreign import RECORD_BYTES, ForeignFileError, read_bytes, read_json

SCORE = "eval/avg@"  # how the name of the held-out score begins
BEFORE = -1  # `step` of the line with the score before the first update
RECENT = 20  # steps that a pace is taken over
# Phases of a step in timing.jsonl, which do not overlap.
PHASES = ("rollout", "grade", "update", "evaluate", "save")


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a run's files say.

    Attributes:
        record: run.json; {} if it cannot be read.
        stages: records of stages.json.
        steps: steps done, by metrics.jsonl.
        last: newest line of metrics.jsonl; {} if there is none.
        scores: (step, name, held-out score), in order; step -1 is before the first update.
        pace_s: mean seconds of a step over the newest ones; None if unknown.
        seconds: seconds that all steps took, by timing.jsonl.
        tokens_per_s: response tokens a second of the first process's sampler, over the newest
            steps; None if unknown.
        checkpoint: step of the newest checkpoint; None if there is none.
        checkpoint_at_s: when it was complete, in seconds since 1970.
        written_at_s: when metrics.jsonl was written last; None if it does not exist.
    """

    record: dict[str, Any]
    stages: list[dict[str, Any]]
    steps: int
    last: dict[str, Any]
    scores: list[tuple[int, str, float]]
    pace_s: float | None
    seconds: float
    tokens_per_s: float | None
    checkpoint: int | None
    checkpoint_at_s: float | None
    written_at_s: float | None

    @property
    def stage(self) -> dict[str, Any] | None:
        """The record of the newest stage that was entered."""
        return self.stages[-1] if self.stages else None

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The run's starts, oldest first, each with how it ended unless it was killed."""
        starts = self.record.get("starts")
        return [s for s in starts if isinstance(s, dict)] if isinstance(starts, list) else []

    @property
    def stage_lengths(self) -> list[int]:
        """`steps` of each stage, by the config."""
        config, lengths = self.record.get("config"), []
        while isinstance(config, dict):
            steps = config.get(f"stages[{len(lengths)}].steps")
            if not isinstance(steps, int):
                break
            lengths.append(steps)
        return lengths

    @property
    def steps_in_all(self) -> int:
        """Most steps that the run will have done at its end; 0 if unknown."""
        lengths = self.stage_lengths
        if not self.stage or not 0 <= (index := self.stage["stage"]) < len(lengths):
            return sum(lengths)
        end = self.stage["last_step"]
        here = self.stage["first_step"] + lengths[index] if end is None else end + 1
        return here + sum(lengths[index + 1 :])

    @property
    def finished(self) -> bool:
        """True if the run's last stage has ended."""
        if any("ended" in start for start in self.starts):  # versions up to 0.2 record no end
            return self.starts[-1].get("ended") == "finished"
        last = len(self.stage_lengths) - 1
        return bool(
            self.stage and self.stage["stage"] >= last and self.stage["last_step"] is not None
        )


def read_standing(workdir: epath.Path) -> Standing:
    """Where the run in `workdir` stands."""
    metrics = tail_lines(workdir / "metrics.jsonl", also=SCORE.encode())
    timing = tail_lines(workdir / "timing.jsonl")
    trained = [line for line in metrics if line["step"] >= 0]
    seconds = [_seconds(line) for line in timing if line["step"] >= 0]
    recent = seconds[1:][-RECENT:] or seconds  # the first one compiles
    rates = [_finite(line.get("throughput/rollout_tokens_per_s")) for line in timing[-RECENT:]]
    known = [rate for rate in rates if rate is not None]
    checkpoint, checkpoint_at_s = _checkpoint(workdir / "checkpoints")
    return Standing(
        record=_object(workdir / RECORD),
        stages=_stages(workdir / "stages.json"),
        steps=trained[-1]["step"] + 1 if trained else 0,
        last=trained[-1] if trained else {},
        scores=[
            (line["step"], name.removeprefix("eval/"), value)
            for line in metrics
            for name in line
            if name.startswith(SCORE) and (value := _finite(line[name])) is not None
        ],
        pace_s=sum(recent) / len(recent) if recent else None,
        seconds=sum(seconds),
        tokens_per_s=sum(known) / len(known) if known else None,
        checkpoint=checkpoint,
        checkpoint_at_s=checkpoint_at_s,
        written_at_s=_written_at_s(workdir / "metrics.jsonl"),
    )


def score_temperatures(
    config: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], steps: Sequence[int]
) -> tuple[float, ...]:
    """The temperatures of the held-out scores of these steps, each once; unknown ones left out.

    Args:
        config: the settings of run.json.
        stages: records of stages.json.
        steps: steps, or `BEFORE`.
    """
    found: dict[float, None] = {}
    for step in steps:
        entered = [x["stage"] for x in stages if x["first_step"] <= max(step, 0)]
        own = config.get(f"stages[{entered[-1]}].evaluate_temperature") if entered else None
        if (value := _finite(own or config.get("evaluate.temperature"))) is not None:
            found[value] = None
    return tuple(found)


def score_text(run: Standing) -> str:
    """The first and the last held-out score in one line; "" if there is none."""
    scores, config = run.scores, run.record.get("config")
    if not scores:
        return ""

    def when(step: int) -> str:
        return "before training" if step == BEFORE else f"after {step + 1} steps"

    (step, name, value), first = scores[-1], scores[0]
    if len(scores) == 1 or first[1] != name:
        return f"{name} {value:.1%} {when(step)}"
    both = f"{name} {first[2]:.1%} {when(first[0])}, {value:.1%} {when(step)}"
    config = config if isinstance(config, dict) else {}
    temperatures = score_temperatures(config, run.stages, (first[0], step))
    if len(temperatures) > 1:  # a difference of these is no gain
        return f"{both} (at temperatures {' and '.join(f'{t:g}' for t in temperatures)})"
    return f"{both} ({100 * (value - first[2]):+.1f} points)"


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _object(path: epath.Path) -> dict[str, Any]:
    try:
        return read_json(path, most_bytes=RECORD_BYTES, strict=False)
    except (OSError, ForeignFileError):
        return {}


def _stages(path: epath.Path) -> list[dict[str, Any]]:
    try:
        found = read_json(path, kind=list, most_bytes=RECORD_BYTES, strict=False)
    except (OSError, ForeignFileError):
        return []
    whole = ("stage", "first_step", "max_response_tokens", "dropped_ids_count")
    return [
        {"last_step": None, **record}
        for record in found
        if isinstance(record, dict)
        and all(isinstance(record.get(name), int) for name in whole)
        and isinstance(record.get("last_step"), int | None)
    ]


def tail_lines(path: epath.Path, *, also: bytes | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl or timing.jsonl with a whole `step`, without damaged ones.

    Args:
        path: the file; no lines if it cannot be read.
        also: if given, only the newest line and those that contain it.
    """
    try:
        lines = read_bytes(path, most_bytes=1 << 30).splitlines(keepends=True)
    except (OSError, ForeignFileError):
        return []
    whole = [line for line in lines if line.endswith(b"\n")]
    wanted = whole if also is None else [n for n in whole[:-1] if also in n] + whole[-1:]
    found = []
    for line in wanted:
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict) and type(value.get("step")) is int:
                found.append(value)
    return found


def _seconds(line: dict[str, Any]) -> float:
    return math.fsum(_finite(line.get(f"time/{name}_s")) or 0.0 for name in PHASES)


def _finite(value: Any) -> float | None:
    known = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if known else None


def _checkpoint(folder: epath.Path) -> tuple[int | None, float | None]:
    """Step and time of the newest folder with a manifest, which is written last."""
    steps = [int(p.name) for p in matching(folder, "*") if re.fullmatch("[0-9]+", p.name)]
    for step in sorted(steps, reverse=True):
        if (at_s := _written_at_s(folder / str(step) / "MANIFEST.json")) is not None:
            return step, at_s
    return None, None


def _written_at_s(path: epath.Path) -> float | None:
    try:
        return float(path.stat().mtime)
    except OSError:
        return None
