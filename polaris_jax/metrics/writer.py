"""The run's numbers as files: metrics.jsonl, timing.jsonl, TensorBoard, Weights & Biases.

metrics.jsonl holds only functions of config, data and seed, one line a step, so that a run that was
killed and resumed leaves the same bytes as one that was not. What depends on the machine or the
clock goes to timing.jsonl. TensorBoard and W&B follow both files and promise nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from etils import epath

from polaris_jax.config.settings import ConfigError
from polaris_jax.system.files import AnyPath, append_bytes, as_place, is_remote, write_bytes
from polaris_jax.system.foreign import (
    ForeignFileError,
    parse_json,
    read_bytes,
    read_json,
    shown,
)
from polaris_jax.system.progress import say

METRICS = "metrics.jsonl"
LINES_BYTES = 1 << 30  # of a file of lines, as after some 500,000 steps
TIMING = "timing.jsonl"
WANDB = "wandb"
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


class MetricsWriter:
    """Writes the metrics of a run's steps.

    A line starts with `step`, its other names are sorted, floats are written by repr: equal numbers
    give equal bytes. A NaN or an infinity is written as null and its name put into the line's
    `nonfinite` list, which is there only when it has an entry.

    Args:
        workdir: gets the files; must exist.
        tensorboard: also write event files to `tensorboard/`.
        wandb: also log to Weights & Biases.
        first_step: the first step that will be written; TensorBoard hides older points from it on.
        enabled: False writes nothing (every process but the first).

    Raises:
        ConfigError: `wandb` is asked for and not installed.
    """

    def __init__(
        self,
        workdir: AnyPath,
        *,
        tensorboard: bool = False,
        wandb: bool = False,
        first_step: int = 0,
        enabled: bool = True,
    ) -> None:
        if wandb and importlib.util.find_spec("wandb") is None:
            raise ConfigError(
                "metrics.wandb=True: the package wandb is not installed; "
                "pip install 'polaris_jax[wandb]', or set metrics.wandb=False"
            )
        self._workdir, self._enabled = as_place(workdir), enabled
        self._last_step: int | None = None
        self._warned = False
        self._events = self._wandb_run = None
        if enabled and tensorboard:
            self._events = EventFiles(self._workdir, first_step=first_step)
        if enabled and wandb:
            self._wandb_run = _start_wandb(self._workdir)

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

    def close(self) -> None:
        """Flushes and closes TensorBoard and W&B; the files hold every line already."""
        if self._events is not None:
            self._events.close()
        if self._wandb_run is not None:
            self._wandb_run.finish()
        self._events = self._wandb_run = None

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
        if self._events is not None:
            self._events.add(step, numbers)
        if self._wandb_run is not None:
            self._wandb_run.log({**numbers, "step": int(step)})


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


def _start_wandb(workdir: epath.Path) -> Any:
    import wandb  # pyright: ignore[reportMissingImports]

    # The id is stored in the workdir: a resumed run continues its own W&B run, a new one does not.
    folder = workdir / WANDB
    folder.mkdir(exist_ok=True)
    if not (folder / "run_id").exists():
        write_bytes(folder / "run_id", secrets.token_hex(8).encode())
    run_id = (folder / "run_id").read_text()
    config_path = workdir / "run.json"
    config = read_json(config_path).get("config") if config_path.exists() else None
    local = tempfile.mkdtemp() if is_remote(workdir) else str(workdir)  # its own log, not ours
    run = wandb.init(project="polaris_jax", dir=local, id=run_id, resume="allow", config=config)
    run.define_metric("*", step_metric="step")
    return run


TENSORBOARD = "tensorboard"


class EventFiles:
    """Writes `tensorboard/` in a workdir, in the caller's thread.

    tensorboardX's own thread dies of a full disk with a traceback, and its queue, which nobody
    empties any more, then holds up the run for good.

    Event files grow by appending, which a store cannot: there they are kept in a temporary folder
    of this machine and are uploaded in full after every step.

    Args:
        workdir: gets the folder.
        first_step: TensorBoard hides older points from it on.

    Raises:
        OSError: the disk refused; its place is named.
    """

    def __init__(self, workdir: epath.Path, *, first_step: int) -> None:
        self._x = _tensorboard_x()
        self._folder = workdir / TENSORBOARD
        self._local = tempfile.TemporaryDirectory() if is_remote(workdir) else None
        where = self._folder if self._local is None else epath.Path(self._local.name)
        where.mkdir(parents=True, exist_ok=True)
        with self._named_errors():
            self._writer = self._x.EventsWriter(f"{where}/events")
            started = self._x.SessionLog(status=self._x.SessionLog.START)
            self._write(first_step, file_version="brain.Event:2")
            self._write(first_step, session_log=started)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """The points of a step."""
        with self._named_errors():
            for name, number in numbers.items():
                self._write(step, summary=self._x.scalar(name, number))
            self._writer.flush()
        self._copy()

    def close(self) -> None:
        """Closes; what the disk has refused before is not asked for again."""
        with contextlib.suppress(OSError):
            self._writer.close()
            self._copy()
        if self._local is not None:
            self._local.cleanup()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._x.Event(wall_time=time.time(), step=step, **content))

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._folder)) from error

    def _copy(self) -> None:
        if self._local is None:
            return
        for file in epath.Path(self._local.name).iterdir():
            write_bytes(self._folder / file.name, file.read_bytes())


def _tensorboard_x() -> Any:
    """What we use of tensorboardX; where torch is installed it would import that too."""
    kept_out = "torch" not in sys.modules
    if kept_out:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar
    finally:
        if kept_out:
            del sys.modules["torch"]
    events: Any = event_pb2  # generated: a type checker finds nothing in it
    return SimpleNamespace(
        EventsWriter=EventsWriter, Event=events.Event, SessionLog=events.SessionLog, scalar=scalar
    )
