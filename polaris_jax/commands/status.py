"""Where a run stands: stage, step, time left, tokens a second, last score, last checkpoint, hosts.

Reads the files of the workdir DIR and nothing else, so it works while the run lives, after it has
died and after it has ended, from any machine that sees the workdir.

Example:
  polaris status runs/4b
  polaris status runs/4b --watch --every 10
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from absl import flags
from etils import epath

from polaris_jax.commands.flags import parse
from polaris_jax.config import ConfigError
from polaris_jax.run.owner import holder
from polaris_jax.run.record import RECORD
from polaris_jax.run.reference import compare_with_reference
from polaris_jax.run.signs import BEAT_S, Sign, read_signs, read_warnings
from polaris_jax.run.standing import Standing, duration, read_standing, score_text
from polaris_jax.run.workdir import LOCK
from polaris_jax.system.files import is_remote
from polaris_jax.system.foreign import ForeignFileError, printable

SILENT_S = 5 * BEAT_S  # without a sign for so long, a run that no lock tells of counts as dead
SHOWN_WARNINGS = 5
CLEAR = "\x1b[2J\x1b[H"


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("watch", False, "show it again until the run has ended", flag_values=values)
    flags.DEFINE_float(
        "every", 5.0, "seconds between two looks", lower_bound=0.1, flag_values=values
    )


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse(
        "status", argv, doc=__doc__ or "", define=_define, takes_config=False, operand="DIR"
    )
    workdir, watch = command.workdir, command.flags["watch"]
    while True:
        lives, lines = status_lines(workdir, now_s=time.time())
        if watch and sys.stdout.isatty():
            print(CLEAR, end="")
        print("\n".join(lines), flush=True)
        if not (watch and lives):
            return 0
        time.sleep(command.flags["every"])


def status_lines(workdir: epath.Path, *, now_s: float) -> tuple[bool, list[str]]:
    """True if the run lives, and its state in lines.

    Args:
        workdir: directory of the run.
        now_s: the present time, in seconds since 1970.

    Raises:
        ConfigError: the directory holds no run.
    """
    if not (workdir / RECORD).exists():
        there = "holds no run (no run.json)" if workdir.is_dir() else "there is no such directory"
        raise ConfigError(f"{workdir}: {there}; name the --workdir of `polaris train`")
    run, signs, warnings = read_standing(workdir), read_signs(workdir), read_warnings(workdir)
    processes = run.record.get("processes")
    if isinstance(processes, int):  # an earlier start may have had more
        signs = [sign for sign in signs if sign.process < processes]
    times = [*(sign.time_s for sign in signs), run.written_at_s or 0.0]
    lives, state = _life(workdir, run, silent_s=max(0.0, now_s - max(times)))
    rows = [("run", f"{workdir}: {state}"), *_rows(run, lives=lives, now_s=now_s)]
    if compared := compare_with_reference(workdir):
        rows.append(("expected", compared.text))
    if lives or not run.finished:  # of a finished run a sign of life says nothing
        rows += [(f"process {sign.process}", _sign_text(sign, now_s)) for sign in signs]
    rows += _warning_rows(run, warnings, now_s)
    return lives, [f"{name:<12}{printable(text)}" for name, text in rows]


def _life(workdir: epath.Path, run: Standing, *, silent_s: float) -> tuple[bool, str]:
    """True if the run lives, and what is known about it."""
    locked, owner = _lock(workdir)
    if locked:
        return True, f"running ({owner})"
    start = run.starts[-1] if run.starts else {}
    if run.finished:
        return False, "finished"
    again = "rerun the same command to continue"
    if "ended" in start:
        return False, f"{start['ended']} at {start.get('ended_at')}; {again}"
    # A lock on another machine's disk may not be seen here, and a store has none.
    if silent_s < SILENT_S and (locked is None or start.get("host") != socket.gethostname()):
        return True, f"running, by a sign of life {duration(silent_s)} ago"
    return False, f"not running, and it did not end by itself: killed, or its machine lost; {again}"


def _lock(workdir: epath.Path) -> tuple[bool | None, str]:
    """True if a process on this disk owns the workdir, and which; None if that cannot be known."""
    if is_remote(workdir):
        return None, ""
    try:
        owner = holder(workdir / LOCK)
    except (OSError, ForeignFileError):
        return None, ""
    return owner is not None, owner or ""


def _rows(run: Standing, *, lives: bool, now_s: float) -> Iterator[tuple[str, str]]:
    in_all = run.steps_in_all
    yield "steps", f"{run.steps} of {in_all or '?'} done"
    if stage := run.stage:
        yield (
            "stage",
            f"{stage['stage']} (of 0 to {max(len(run.stage_lengths) - 1, stage['stage'])}), "
            f"temperature {_number(stage.get('temperature'))}, up to "
            f"{stage['max_response_tokens']} response tokens, {stage['dropped_ids_count']} "
            "problems dropped",
        )
    if run.pace_s is not None:
        left = max(0, in_all - run.steps)
        pace = f"{run.pace_s:.1f} s a step"
        if lives and left:
            pace = f"at most {duration(left * run.pace_s)} ({left} steps at {pace})"
        yield "time left" if lives and left else "pace", f"{pace}; {duration(run.seconds)} so far"
    if run.tokens_per_s is not None:
        whose = " in the first process" if run.record.get("processes", 1) != 1 else ""
        yield "sampling", f"{run.tokens_per_s:,.0f} tokens/s{whose}"
    if run.last:
        yield (
            "last step",
            f"reward {_number(run.last.get('rollout/reward_mean'))}, informative groups "
            f"{_number(run.last.get('rollout/informative_share'))}, entropy "
            f"{_number(run.last.get('update/entropy'))}, clipped "
            f"{_number(run.last.get('rollout/clip_ratio'))}",
        )
    if run.scores:
        yield "held-out", score_text(run)
    if run.checkpoint is None or run.checkpoint_at_s is None:
        yield "checkpoint", "none yet"
    else:
        yield "checkpoint", f"step {run.checkpoint}, {_ago(run.checkpoint_at_s, now_s)}"


def _warning_rows(
    run: Standing, warnings: list[dict[str, Any]], now_s: float
) -> Iterator[tuple[str, str]]:
    record = run.record
    if record.get("deterministic") is False:
        yield "warning", "not deterministic: more than config, data and seed decided a result"
    if missing := record.get("missing_metrics"):
        yield "warning", f"metrics.jsonl lost the lines of {len(missing)} steps"
    if (more := len(warnings) - SHOWN_WARNINGS) > 0:
        yield "warnings", f"{more} older ones are in warnings.json"
    for warning in warnings[-SHOWN_WARNINGS:]:
        often = f" ({warning['count']} times)" if warning["count"] > 1 else ""
        yield "warning", f"{_ago(warning['last_s'], now_s)}{often}: {warning['text']}"


def _sign_text(sign: Sign, now_s: float) -> str:
    return f"{_ago(sign.time_s, now_s)}: {sign.doing} (pid {sign.pid} on {sign.host})"


def _ago(then_s: float, now_s: float) -> str:
    return f"{duration(max(0.0, now_s - then_s))} ago"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "-"
