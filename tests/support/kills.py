"""Lives of one run: processes that a test kills, stops or lets end, with all that they say.

A kill counts where the process is past its start-up (it has said where it resumed, that a stage
began, or what a step did), is alive, and has steps left.
"""

from __future__ import annotations

import json
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

from polaris_jax.checkpoint import Checkpointer
from polaris_jax.config.sections import CheckpointSection
from tests.support.micro_run import final_leaves, start_train

STEPS = 9  # of a micro run
GRACE_S = CheckpointSection().grace_s
LONGEST_DELAY_S = 0.8  # some steps
TIMEOUT_S = 300


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says, step by step."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def lines_written(workdir: Path) -> int:
    """Lines of metrics.jsonl, a torn one too."""
    path = workdir / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def newest_whole(workdir: Path) -> int | None:
    """The step that a resume begins at."""
    return Checkpointer(workdir / "checkpoints", warn=lambda _: None).latest()


class Life:
    """One start of `polaris train`, to be ended by one of its methods.

    Args:
        workdir: the run's; the output of every life stays in files beside it.
        line: its flags.
        dies_after: a moment of `tests.support.dies_after`, at whose `nth` call it kills itself.
        nth: from 1.
    """

    def __init__(
        self, workdir: Path, line: list[str], *, dies_after: str = "", nth: int = 1
    ) -> None:
        self.workdir, self.moment = workdir, dies_after
        self.lines, self.whole = lines_written(workdir), newest_whole(workdir)
        lives = len(list(workdir.parent.glob(f"{workdir.name}.life*")))
        self._log = workdir.with_name(f"{workdir.name}.life{lives}")
        program = (
            ("tests.support.dies_after", dies_after, str(nth)) if dies_after else ("polaris_jax",)
        )
        with self._log.open("w") as out:
            self.process = start_train(workdir, line, program=program, out=out)

    @property
    def said(self) -> str:
        """Its output so far."""
        return self._log.read_text()

    @property
    def step(self) -> int | None:
        """The step that it is at by its own words; None while it starts up."""
        ended = re.findall(r"^step (\d+): ", self.said, re.MULTILINE)
        if ended:
            return int(ended[-1]) + 1
        begun = re.search(r"^(?:resumed at step (\d+)|stage \d+: )", self.said, re.MULTILINE)
        return int(begun[1] or 0) if begun else None

    def wait_for(self, step: int) -> None:
        """Returns once it is past its start-up and at `step` or a later one."""
        deadline = time.monotonic() + TIMEOUT_S
        while (at := self.step) is None or at < step:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, f"no step {step} in {TIMEOUT_S} s: {self.said}"
            time.sleep(0.01)

    def kill(self, *, at: int, delay_s: float) -> None:
        """SIGKILL so long after it has come to a step, and before its last steps."""
        self.wait_for(at)
        until = time.monotonic() + delay_s
        while time.monotonic() < until and (self.step or 0) < STEPS - 2:
            time.sleep(0.01)
        assert self.process.poll() is None, f"it ended before it was killed: {self.said}"
        self.process.kill()
        self._ended(-signal.SIGKILL)
        assert "finished:" not in self.said

    def die(self) -> None:
        """Waits for the moment at which it kills itself."""
        self._ended(-signal.SIGKILL)
        assert self.said.endswith(f"dies after {self.moment}\n"), self.said

    def stop(self, number: signal.Signals, *, at: int, status: int = 0) -> None:
        """A signal at a step or after: in time, it leaves a state with no step to do again."""
        self.wait_for(at)
        self.process.send_signal(number)
        self._ended(status)
        told = re.search(
            r"^stopped; rerun .*\(([\d.]+) s after (\w+)\): (\d+) steps", self.said, re.MULTILINE
        )
        assert told, self.said
        assert told[2] == number.name
        assert float(told[1]) <= GRACE_S
        assert int(told[3]) == lines_written(self.workdir) == newest_whole(self.workdir)

    def finish(self) -> str:
        """What it has said, after a good end."""
        self._ended(0)
        return self.said

    def _ended(self, status: int) -> None:
        found = self.process.wait(timeout=TIMEOUT_S)
        assert found == status, self.said
        assert status < 0 or "Traceback" not in self.said, self.said
        assert "is not whole" not in self.said, self.said  # a kill leaves beginnings, no damage
        self._check_start()

    def _check_start(self) -> None:
        """It resumed at the newest whole checkpoint and counted the steps that it did again."""
        resumed = re.findall(r"^resumed at step (\d+)$", self.said, re.MULTILINE)
        assert resumed == ([] if self.whole is None else [str(self.whole)]), self.said
        assert self.whole != 0  # nothing is saved before the first step
        redone = self.lines - (self.whole or 0)
        again = re.findall(r"^(\d+) steps are done again$", self.said, re.MULTILINE)
        cut_off = not re.search(r"^(step|stage) \d+: |finished: |stopped", self.said, re.MULTILINE)
        assert again == [str(redone)] * (redone > 0) or (cut_off and not again), self.said


def kill_at_random(workdir: Path, line: list[str], *, kills: int, seed: int) -> None:
    """So many lives, each killed at a random moment past a random step, the steps ascending.

    All but the first resume: whoever has come to step 3 has saved step 2.
    """
    pick = random.Random(seed)
    for number, at in enumerate(sorted(pick.choices(range(3, STEPS - 1), k=kills))):
        life = Life(workdir, line)
        life.kill(at=at, delay_s=pick.uniform(0, LONGEST_DELAY_S))
        assert number == 0 or life.whole is not None


def assert_same_run(workdir: Path, whole: Path) -> None:
    """Files and newest checkpoint of a run are, byte for byte, those of another."""
    for name in ("metrics.jsonl", "stages.json"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name
    got, want = final_leaves(workdir), final_leaves(whole)
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].tobytes() == want[name].tobytes(), name
    rollouts = {path.name: path.read_bytes() for path in (whole / "rollouts").iterdir()}
    assert {p.name: p.read_bytes() for p in (workdir / "rollouts").iterdir()} == rollouts
