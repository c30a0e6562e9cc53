"""Parts and states of a training run without a model: what is not given must not be touched."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from polaris_jax.assemble import Parts, Solver
from polaris_jax.batch import RescueBuffer
from polaris_jax.config import RunConfig
from polaris_jax.data.prompts import PromptFormat
from polaris_jax.models.tokenizer import stop_token_ids
from polaris_jax.records import Graded, StageState
from polaris_jax.reward import RewardInput
from polaris_jax.reward.grader import Grade
from polaris_jax.rollout.samplers import Samplers
from polaris_jax.run.step_clock import StepClock
from polaris_jax.stages.difficulty import AccuracyTable
from polaris_jax.stages.lengths import LengthTable
from polaris_jax.state import RunState
from polaris_jax.system.progress import Progress


class Absent:
    """Stands for a part that a test does not give; whoever uses it fails."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test gives no {self._name}, and {name} of it was asked for")


class Screen(Progress):
    """Keeps the lines that a person would see."""

    def __init__(self) -> None:
        super().__init__(enabled=False)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


class Written:
    """In the place of `Outputs`: keeps what is written."""

    def __init__(self) -> None:
        self.rollouts: list[Graded] = []
        self.donors: list[dict[int, int]] = []
        self.metrics: list[tuple[int, dict[str, Any]]] = []
        self.stages: list[list[dict[str, Any]]] = []
        self.timing: list[tuple[int, dict[str, Any]]] = []

    def keep_rollouts(self, step: int, graded: Graded, **_: Any) -> None:
        self.rollouts.append(graded)

    def write_rollouts(self, step: int, *, donors: Mapping[int, int]) -> None:
        self.donors.append(dict(donors))

    def write_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        self.metrics.append((step, metrics))

    def write_stages(self, records: Sequence[dict[str, Any]]) -> None:
        self.stages.append(copy.deepcopy(list(records)))

    def write_timing(self, step: int, line: dict[str, Any]) -> None:
        self.timing.append((step, line))


class NothingRight:
    """A grader without workers; every reward is 0."""

    def reward(self, response: RewardInput) -> float:
        return 0.0

    def grade_inputs(self, responses: Sequence[RewardInput]) -> list[Grade]:
        return [Grade(self.reward(one), None, "stand-in", "", "", "") for one in responses]


def make_parts(
    config: RunConfig | None = None,
    *,
    tokenizer: Any = None,
    grader: Any = None,
    samplers: Any = None,
    **given: Any,
) -> Parts:
    """Parts of a run of `config` that writes nothing to a disk."""
    config = config or RunConfig()
    progress = given.setdefault("progress", Screen())
    solver = Solver(
        prompt_format=PromptFormat(config.data.prompt_suffix),
        tokenizer=tokenizer or Absent("tokenizer"),
        stop_token_ids=() if tokenizer is None else stop_token_ids(tokenizer),
        grader=grader or Absent("grader"),
        samplers=samplers or Samplers(config, (), progress),
    )
    defaults: dict[str, Any] = {
        "workdir": epath.Path("/nowhere"),
        "problems": (),
        "held_out": (),
        "base_path": "",
        "model_config": Absent("model_config"),
        "updater": Absent("updater"),
        "reference": None,
        "outputs": Written(),
        "checkpoints": Absent("checkpoints"),
        "clock": StepClock(),
    }
    return Parts(config=config, solver=solver, **defaults | given)


def stage_at(index: int = 0, steps_done: int = 0, **fields: Any) -> StageState:
    """A stage under way, at temperature 1 and a budget of 16 tokens."""
    values: dict[str, Any] = {"temperature": 1.0, "max_response_tokens": 16}
    return StageState(stage=index, steps_done=steps_done, **values | fields)


def make_state(**given: Any) -> RunState:
    """A state with empty tables."""
    defaults: dict[str, Any] = {
        "step": 0,
        "stage": stage_at(),
        "next_stage": None,
        "train": Absent("train"),
        "loader": Absent("loader"),
        "accuracy": AccuracyTable(),
        "lengths": LengthTable(),
        "sink": RescueBuffer(),
    }
    return RunState(**defaults | given)
