"""Where a run's numbers go for people to watch: TensorBoard and Weights & Biases.

Both follow metrics.jsonl and timing.jsonl and promise nothing. A tracker takes the numbers of a
step, and tables: sampled responses, stages, and what the metrics mean.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

from etils import epath

from polaris_jax.config.settings import ConfigError
from polaris_jax.system.files import is_remote, write_bytes
from polaris_jax.system.foreign import read_json
from polaris_jax.system.progress import say
from polaris_jax.system.text import one_line, printable

WANDB = "wandb"
TENSORBOARD = "tensorboard"
RUN_ID = "run_id"  # file in wandb/
CELL_CHARS = 2_000  # of a text in a table
FINISH_S = 20.0  # for W&B's last upload, while the run still has its end to record
HELD_OUT = "eval/*"  # the held-out scores; W&B keeps the best and the last of them


class Tracker(Protocol):
    """What a tracker takes."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of a step, by the names of the metrics."""

    def add_table(self, step: int, name: str, table: Table) -> None:
        """A table, as it is at a step."""

    def close(self) -> None:
        """Sends what is left."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of texts and numbers.

    Attributes:
        columns: their names.
        rows: a value for each column.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def sample_table(rows: Sequence[Mapping[str, Any]], most: int) -> Table:
    """Sampled responses: one of each problem first, then further ones.

    Args:
        rows: rows of rollouts/step_N.jsonl.
        most: largest number of rows of the table.
    """
    columns = ("problem_id", "sample", "question", "gold", "text", "reward", "tokens", "reason")
    chosen = sorted(rows, key=lambda row: row["sample"])[:most]  # stable: in the order of the batch
    return Table(columns, tuple(tuple(_cell(row.get(c)) for c in columns) for row in chosen))


def stage_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """The stages that were entered, with the reasons of what was decided.

    Args:
        records: records of stages.json.
    """
    columns = ("stage", "first_step", "last_step", "temperature", "max_response_tokens")
    columns = (*columns, "dropped_ids_count")
    rows = [
        (
            *(_cell(record.get(column)) for column in columns),
            _cell("; ".join(_decision(decision) for decision in record.get("decisions", ()))),
        )
        for record in records
    ]
    return Table((*columns, "decisions"), tuple(rows))


def glossary_table() -> Table:
    """Every metric with its meaning and what to look for."""
    from polaris_jax.metrics.glossary import entries  # late: `python -m` runs that module

    rows = [(", ".join(entry.names), entry.meaning, entry.look) for entry in entries()]
    return Table(("metric", "meaning", "look for"), tuple(rows))


def _decision(decision: Mapping[str, Any]) -> str:
    return f"{decision.get('kind')} = {decision.get('value')}: {decision.get('reason', '')}"


def _cell(value: Any) -> Any:
    """A value of one cell: a number, or a text that is not too long."""
    if value is None or isinstance(value, int | float):
        return value
    text = printable(str(value), lines=True)
    return text if len(text) <= CELL_CHARS else f"{text[:CELL_CHARS]} ..."


@dataclasses.dataclass(frozen=True)
class WandbNames:
    """What a run is called at Weights & Biases; see section `metrics` of the config.

    Attributes:
        project: the project.
        name: name of the run; empty: W&B makes one.
        group: its group; empty: none.
        tags: its tags.
    """

    project: str = "polaris_jax"
    name: str = ""
    group: str = ""
    tags: tuple[str, ...] = ()


class WandbRun:
    """A run at Weights & Biases, for as long as W&B works.

    The run's id is stored in the workdir: a resumed run continues its own W&B run, a new one does
    not. The first start of a run takes the id in WANDB_RUN_ID, which a sweep's agent sets.

    If W&B fails (its process has died, its server cannot be reached), that is a warning, and the
    run continues without it until its next start.

    Args:
        workdir: gets the folder wandb/.
        names: what the run is called.

    Raises:
        ConfigError: W&B refuses the settings or the key of a run that it does not know yet.
    """

    def __init__(self, workdir: epath.Path, names: WandbNames) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb: Any = wandb
        self._run: Any = None
        stored = workdir / WANDB / RUN_ID
        known = ""
        mistakes = (wandb.errors.UsageError, wandb.errors.AuthenticationError, ValueError)

        def begin() -> None:
            nonlocal known
            (workdir / WANDB).mkdir(exist_ok=True)
            known = stored.read_text() if stored.exists() else ""
            self._run = self._begin(workdir, names, run_id=known)
            if not known:
                write_bytes(stored, self._run.id.encode())

        error = _error_of(begin)
        if error is not None and isinstance(error, mistakes) and not known:
            raise ConfigError(
                f"metrics.wandb=True: Weights & Biases refuses the run ({one_line(error)}); "
                "mend metrics.wandb_* or the key, or set metrics.wandb=False"
            ) from error
        if error is not None:
            self._leave_out(one_line(error))
        self.add_table(0, "glossary", glossary_table())

    def _begin(self, workdir: epath.Path, names: WandbNames, *, run_id: str) -> Any:
        record = workdir / "run.json"
        # W&B's own log needs a disk.
        local = tempfile.mkdtemp() if is_remote(workdir) else str(workdir)
        run = self._wandb.init(
            project=names.project,
            name=names.name or None,
            group=names.group or None,
            tags=list(names.tags) or None,
            dir=local,
            id=run_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(8),
            resume="allow",
            config=read_json(record).get("config") if record.exists() else None,
        )
        run.define_metric("*", step_metric="step")
        run.define_metric(HELD_OUT, step_metric="step", summary="max,last")
        return run

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of a step, by the names of the metrics."""
        self._log(lambda: {**numbers, "step": int(step)})

    def add_table(self, step: int, name: str, table: Table) -> None:
        """A table, as it is at a step."""
        columns, rows = list(table.columns), [list(row) for row in table.rows]
        self._log(
            lambda: {
                f"tables/{name}": self._wandb.Table(columns=columns, data=rows),
                "step": int(step),
            }
        )

    def close(self) -> None:
        """Ends the W&B run. An upload that takes longer than `FINISH_S` is not waited for here."""
        if self._run is None:
            return
        run, failures = self._run, []

        def finish() -> None:
            if (error := _error_of(run.finish)) is not None:
                failures.append(one_line(error))

        thread = threading.Thread(target=finish, daemon=True)
        thread.start()
        thread.join(FINISH_S)
        if thread.is_alive():
            failures.append(f"its upload has not ended after {FINISH_S:.0f} s; see `wandb sync`")
        for reason in failures[:1]:
            self._leave_out(reason)
        self._run = None

    def _log(self, make: Callable[[], dict[str, Any]]) -> None:
        if self._run is None:
            return
        if (error := _error_of(lambda: self._run.log(make()))) is not None:
            self._leave_out(one_line(error))

    def _leave_out(self, reason: str) -> None:
        self._run = None
        say(f"warning: Weights & Biases: {reason}; the run continues without it", sys.stderr)


def _error_of(call: Callable[[], Any]) -> Exception | None:
    """What a call of W&B raises; None if it succeeds."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - a tracker promises nothing, and ends no run
        return error
    return None


class EventFiles:
    """Writes `tensorboard/` in a workdir, for as long as its place takes what is written.

    If the place refuses (a full disk, a store that does not answer), that is a warning, and the run
    continues without TensorBoard until its next start, which begins another event file.

    Events are written in the caller's thread: tensorboardX's own thread dies of a full disk with a
    traceback, and its queue, which nobody empties any more, then holds up the run for good.

    Event files grow by appending, which a store cannot: there they are kept in a temporary folder
    of this machine and are uploaded in full after every step.

    Args:
        workdir: gets the folder.
        first_step: TensorBoard hides older points from it on.
    """

    def __init__(self, workdir: epath.Path, *, first_step: int) -> None:
        self._x = _tensorboard_x()
        self._folder = workdir / TENSORBOARD
        self._local: tempfile.TemporaryDirectory[str] | None = None
        self._writer: Any = None
        self._described: set[str] = set()
        self._works = True

        def begin() -> None:
            if is_remote(workdir):
                self._local = tempfile.TemporaryDirectory()
            where = self._folder if self._local is None else epath.Path(self._local.name)
            where.mkdir(parents=True, exist_ok=True)
            self._writer = self._x.EventsWriter(f"{where}/events")
            started = self._x.SessionLog(status=self._x.SessionLog.START)
            self._write(first_step, file_version="brain.Event:2")
            self._write(first_step, session_log=started)

        self._try(begin)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """The points of a step; the first point of a metric has its meaning with it."""

        def write() -> None:
            for name, number in numbers.items():
                self._write(step, summary=self._with_meaning(name, self._x.scalar(name, number)))
            self._writer.flush()
            self._copy()

        self._try(write)

    def add_table(self, step: int, name: str, table: Table) -> None:
        """A table as a text in Markdown."""
        lines = [table.columns, ["---"] * len(table.columns), *table.rows]
        text = "\n".join(f"| {' | '.join(map(_markdown, line))} |" for line in lines)

        def write() -> None:
            self._write(step, summary=self._x.text(name, text))
            self._writer.flush()
            self._copy()

        self._try(write)

    def close(self) -> None:
        """Closes; what the disk has refused before is not asked for again."""
        with contextlib.suppress(OSError):
            if self._writer is not None:
                self._writer.close()
            if self._works:
                self._copy()
        if self._local is not None:
            self._local.cleanup()
        self._works = False

    def _try(self, call: Callable[[], None]) -> None:
        """Calls, unless an earlier call was refused; the first refusal is a warning."""
        if not self._works:
            return
        try:
            call()
        except OSError as error:
            self._works = False
            where = self._folder if self._local is None else self._local.name
            say(
                f"warning: TensorBoard: {error.filename or where}: {error.strerror or error}; the "
                "run continues without it until its next start",
                sys.stderr,
            )

    def _with_meaning(self, name: str, summary: Any) -> Any:
        from polaris_jax.metrics.glossary import meaning_of  # late, as above

        if name not in self._described:
            self._described.add(name)
            summary.value[0].metadata.summary_description = meaning_of(name)
        return summary

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._x.Event(wall_time=time.time(), step=step, **content))

    def _copy(self) -> None:
        if self._local is None:
            return
        for file in epath.Path(self._local.name).iterdir():
            write_bytes(self._folder / file.name, file.read_bytes())


def _markdown(value: Any) -> str:
    """A cell of a table in Markdown, which shows a text as it is."""
    text = "" if value is None else str(value)
    text = re.sub(r"[\\`*_\[\]<>|#&]", lambda found: f"&#{ord(found[0])};", text)
    return text.replace("\n", "<br>")


def _tensorboard_x() -> Any:
    """What we use of tensorboardX; where torch is installed it would import that too."""
    kept_out = "torch" not in sys.modules
    if kept_out:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar, text
    finally:
        if kept_out:
            del sys.modules["torch"]
    events: Any = event_pb2  # generated: a type checker finds nothing in it
    return SimpleNamespace(
        EventsWriter=EventsWriter,
        Event=events.Event,
        SessionLog=events.SessionLog,
        scalar=scalar,
        text=text,
    )
