"""`python -m tests.support.dies_after MOMENT NTH train ...`: a run that kills itself at a moment.

From inside: the moments last milliseconds, and a signal from outside would meet one now and then.
"""

import functools
import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

from polaris_jax import loop
from polaris_jax.__main__ import entry
from polaris_jax.assemble import Parts
from polaris_jax.checkpoint import step_folders
from polaris_jax.data.loader import PromptLoader
from polaris_jax.rollout.driver import Driver
from polaris_jax.run.outputs import Outputs
from polaris_jax.state import RunState
from polaris_jax.system.signals import StopRequest
from polaris_jax.train.update import Updater

# The call after which the run dies.
MOMENTS: dict[str, tuple[Any, str]] = {
    "rollout": (Driver, "step"),
    "update": (Updater, "update"),
    "save": (step_folders, "sync_and_sum"),  # the data are on the disk, the manifest is not
}
# The same within, or at the end of, the entry of stage 1.
ENTRY_MOMENTS: dict[str, tuple[Any, str]] = {
    "reset": (Updater, "reset_optimizer"),
    "drop": (PromptLoader, "drop"),
    "stages.json": (Outputs, "write_stages"),
    "entry": (loop, "change_stage"),  # what has been entered is not saved yet
}


def die_after(moment: str, nth: int) -> None:
    """Has this process end at the nth call of a moment."""
    entered, calls = [], itertools.count(1)
    change_stage = loop.change_stage

    def noted(parts: Parts, state: RunState, *, stop: StopRequest) -> RunState:
        entered.append(state.next_stage)
        return change_stage(parts, state, stop=stop)

    loop.change_stage = noted
    owner, name = (MOMENTS | ENTRY_MOMENTS)[moment]
    function = getattr(owner, name)

    @functools.wraps(function)
    def last(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        counts = _is_of_a_step(args[0]) if moment == "save" else moment in MOMENTS or 1 in entered
        if counts and next(calls) == nth:
            print(f"dies after {moment}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, last)


def _is_of_a_step(directory: Any) -> bool:
    """A run's tokenizer is summed too, before its first step."""
    return Path(directory).name.isdigit()


if __name__ == "__main__":
    die_after(sys.argv[1], int(sys.argv[2]))
    sys.argv[1:3] = []
    entry()
