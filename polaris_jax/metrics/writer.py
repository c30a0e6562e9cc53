"""The run's numbers as files: metrics.jsonl, timing.jsonl, and what trackers are given of them.

metrics.jsonl holds only functions of config, data and seed, one line a step, so that a run that was
killed and resumed leaves the same bytes as one that was not. What depends on the machine or the
clock goes to timing.jsonl. Trackers (TensorBoard, W&B) follow both files and promise nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from polaris_jax.config.settings import ConfigError
from polaris_jax.metrics.trackers import (
    EventFiles,
    Tracker,
    WandbNames,
    WandbRun,
    sample_table,
    stage_table,
)
from polaris_jax.system.files import AnyPath, append_bytes, as_place, write_bytes
from polaris_jax.system.foreign import ForeignFileError, parse_json, read_bytes, shown
from polaris_jax.system.progress import say

METRICS = "metrics.jsonl"
LINES_BYTES = 1 << 30  # of a file of lines, as after some 500,000 steps
TIMING = "timing.jsonl"
SAMPLES_EVERY = 10  # steps from one table of sampled responses to the next
NONFINITE = "nonfinite"


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean that can still be added to: the sum of its terms and their total weight.

    Attributes:
        sum: sum of weight x value; a number or an array without axes.
        weight: total weight of all terms; 0 for an empty class, whose mean is None.
    """

    sum: Any
    weight: Any

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.sum + other.sum, self.weight + other.weight)

    @property
    def value(self) -> float | None:
        """sum / weight; None over an empty class."""
        weight = float(self.weight)
        return float(self.sum) / weight if weight else None


def value_of(metric: Any) -> Any:
    """The number that a metric reduces to; None for a mean over nothing."""
    return metric.value if isinstance(metric, Mean) else metric


def require_wandb(asked: bool) -> None:
    """Raises ConfigError if Weights & Biases is asked for and not installed."""
    if asked and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "metrics.wandb=True: the package wandb is not installed; "
            "pip install 'polaris_jax[wandb]', or set metrics.wandb=False"
        )


class MetricsWriter:
    """Writes the metrics of a run's steps.

    A line starts with `step`, its other names are sorted, floats are written by repr: equal numbers
    give equal bytes. A NaN or an infinity is written as null and its name put into the line's
    `nonfinite` list, which is there only when it has an entry.

    Args:
        workdir: gets the files; must exist.
        tensorboard: also write event files to `tensorboard/`.
        wandb: also log to Weights & Biases.
        names: what the run is called there.
        samples: responses in a tracker's table of samples; 0: no such table.
        first_step: the first step that will be written; TensorBoard hides older points from it on.
        enabled: False writes nothing (every process but the first).

    Raises:
        ConfigError: `wandb` is asked for and not installed, or W&B refuses a new run's settings.
    """

    def __init__(
        self,
        workdir: AnyPath,
        *,
        tensorboard: bool = False,
        wandb: bool = False,
        names: WandbNames | None = None,
        samples: int = 0,
        first_step: int = 0,
        enabled: bool = True,
    ) -> None:
        require_wandb(wandb)
        self._workdir, self._enabled = as_place(workdir), enabled
        self._last_step: int | None = None
        self._warned = False
        self._samples = samples
        self._trackers: list[Tracker] = []
        if enabled and tensorboard:
            self._trackers.append(EventFiles(self._workdir, first_step=first_step))
        if enabled and wandb:
            self._trackers.append(WandbRun(self._workdir, names or WandbNames()))

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Appends the step's line to metrics.jsonl; it is on the disk when this returns.

        Args:
            step: above that of the line before.
            metrics: names `area/quantity` to Mean, number, text, list or None.

        Raises:
            ValueError: a step out of order, or a value that is none of these.
        """
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(f"step {step}: already written; the last one is {self._last_step}")
        self._last_step = step
        self._append(METRICS, step, metrics, durable=True)

    def write_timing(self, step: int, values: dict[str, Any]) -> None:
        """Appends the step's line to timing.jsonl: wall clock, throughput, memory, time-outs.

        Nothing depends on the file: if it cannot be written, that is a warning, printed once.
        """
        self._append(TIMING, step, values, durable=False)

    def cut_back(self, step: int) -> tuple[int, list[int]]:
        """Drops the lines of `step` and later, and a last line that a kill has torn.

        Unreadable lines of timing.jsonl are dropped too.

        Returns:
            How many lines of metrics.jsonl were dropped (steps that are done again), and the
            earlier steps that have no line in it.

        Raises:
            ValueError: a line of metrics.jsonl other than the last is damaged.
        """
        if not self._enabled:
            return 0, []
        self._last_step = None
        with self._warning_once():
            _cut(self._workdir / TIMING, step, strict=False)
        return _cut(self._workdir / METRICS, step, strict=True)

    def show_stages(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Gives the trackers the table of stages, which marks where each begins and ends.

        Args:
            records: records of stages.json.
        """
        if self._trackers and records:
            newest = records[-1]
            last = newest.get("last_step")
            step = newest["first_step"] if last is None else last
            for tracker in self._trackers:
                tracker.add_table(step, "stages", stage_table(records))

    def show_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Gives the trackers a table of sampled responses, at every tenth step.

        Args:
            step: number of the step.
            rows: rows of rollouts/step_N.jsonl.
        """
        if self._trackers and self._samples and step % SAMPLES_EVERY == 0:
            for tracker in self._trackers:
                tracker.add_table(step, "samples", sample_table(rows, self._samples))

    def close(self) -> None:
        """Flushes and closes the trackers; the files hold every line already."""
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []

    @contextlib.contextmanager
    def _warning_once(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ForeignFileError) as error:
            if not self._warned:
                reason = str(error)
                if isinstance(error, OSError):
                    reason = f"{error.filename or TIMING}: {error.strerror or error}"
                say(f"warning: {reason}; the run continues", sys.stderr)
            self._warned = True

    def _append(self, name: str, step: int, values: dict[str, Any], *, durable: bool) -> None:
        line = reduce_metrics(values)
        if not self._enabled:
            return
        text = json.dumps({"step": int(step), **line}, allow_nan=False) + "\n"
        with contextlib.nullcontext() if durable else self._warning_once():
            append_bytes(self._workdir / name, text.encode(), durable=durable)
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float)}
        for tracker in self._trackers:
            tracker.add(step, numbers)


def reduce_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics as plain JSON values, sorted by name; a non-finite one is None and is named.

    What has been reduced already comes back as it is.

    Raises:
        ValueError: a value that is no metric, by name.
    """
    nonfinite: list[str] = list(metrics.get(NONFINITE, ()))
    names = sorted(name for name in metrics if name != NONFINITE)
    line = {name: _plain(metrics[name], name, nonfinite) for name in names}
    if nonfinite:
        line[NONFINITE] = nonfinite
    return line


def _plain(value: Any, name: str, nonfinite: list[str]) -> Any:
    if isinstance(value, Mean):
        value = value.value
    elif hasattr(value, "item"):  # numpy and jax scalars
        if np.ndim(value):
            raise ValueError(f"{name}: an array of shape {np.shape(value)}; a metric is one number")
        value = value.item()
    if isinstance(value, list | tuple):
        return [_plain(item, name, nonfinite) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        if name not in nonfinite:
            nonfinite.append(name)
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{name}: a {type(value).__name__}; a metric is a number, a text or None")


def read_metrics(path: AnyPath) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl or timing.jsonl; a torn last line is left out.

    Raises:
        ValueError: another line is no JSON object with a step; file and line are named.
    """
    path = as_place(path)
    return [line for _, line in _complete_lines(_content(path), path)]


def _cut(path: epath.Path, step: int, *, strict: bool) -> tuple[int, list[int]]:
    """What `cut_back` does to one file, and returns."""
    old = _content(path) if path.exists() else b""
    lines = _complete_lines(old, path, strict=strict)
    others = [line["step"] for _, line in lines if type(line["step"]) is not int]
    if others and strict:
        raise ValueError(f"{path}: step={others[0]!r} is no whole number; mend or delete the line")
    lines = [(raw, line) for raw, line in lines if type(line["step"]) is int]
    kept = [(raw, line) for raw, line in lines if line["step"] < step]
    new = b"".join(raw for raw, _ in kept)
    if new != old:
        write_bytes(path, new)
    missing = set(range(step)) - {line["step"] for _, line in kept}
    return len(old.splitlines()) - len(kept), sorted(missing)


def _content(path: epath.Path) -> bytes:
    remedy = "it is not what a run of this length leaves; move it away"
    return read_bytes(path, most_bytes=LINES_BYTES, remedy=remedy)


def _complete_lines(
    data: bytes, path: epath.Path, *, strict: bool = True
) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines and what they say, without a torn last one (and, if not `strict`, any other)."""
    lines, raws = [], data.splitlines(keepends=True)
    for i, raw in enumerate(raws):
        where = f"{shown(path)}:{i + 1}"
        try:
            line = parse_json(raw, where=where, remedy="mend or delete the line", strict=False)
            if "step" not in line or not raw.endswith(b"\n"):
                raise ValueError(f"{where}: no object with a step; mend or delete the line")
        except ValueError:
            if i == len(raws) - 1:
                break
            if not strict:
                continue
            raise
        lines.append((raw, line))
    return lines
