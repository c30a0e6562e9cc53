"""One compile of each step over a run: counted over whole steps, whatever it is that compiles."""

import json
import re
from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from polaris_jax.run.step_clock import StepClock
from polaris_jax.system import processes
from tests.support.micro_run import finish, flags, make_base, start_train

STAGES = (4, 3)
MORE = 3  # steps that the last stage gets once it is complete, for a resumed run
# The first step of a stage or of a start compiles, and the second may, for arrays that lie anew.
WARM_AFTER = 2


def late_compiles(compiles: list[int], starts: tuple[int, ...]) -> dict[int, int]:
    """Compiles of each step that should have had none, where there were some.

    Args:
        compiles: of each step.
        starts: first steps of stages and of resumed runs.
    """
    warming = {first + i for first in starts for i in range(WARM_AFTER)}
    return {s: n for s, n in enumerate(compiles) if n and s not in warming}


def test_a_late_compile_is_seen():
    assert late_compiles([3, 1, 0, 0, 9, 1, 0], (0, 4)) == {}
    assert late_compiles([3, 1, 1, 0, 9, 1, 2], (0, 4)) == {2: 1, 6: 2}


@pytest.mark.parametrize(("peer", "told"), [(0, 1), (5, 5)], ids=["here", "in a peer"])
def test_a_line_tells_the_compiles_since_the_line_before(peer, told, monkeypatch):
    monkeypatch.setattr(processes, "gather_objects", lambda mine: [mine, [mine[0], peer]])
    stats = SimpleNamespace(stats=lambda: defaultdict(int), reset_stats=lambda: None)
    clock, argument = StepClock(), jnp.zeros(3)

    def line() -> int:
        return clock.line(stats, stats, devices=jax.devices())["compiles/step"]

    with clock.compile_counter:
        jax.jit(lambda x: x + 2)(argument)
        assert line() == told
        assert line() == peer
        jax.jit(lambda x: x + 3)(argument)
        clock.begin_stage(stats, stats)  # what an entry has compiled is no step's
        assert line() == peer


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "fields",
    [
        (),
        pytest.param(("rollout.trainer_state=host",), marks=pytest.mark.slow),
        pytest.param(
            ("evaluate.every_steps=2", "evaluate.n=2", "evaluate.problems={problems}"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["device", "host", "held-out score"],
)
def test_nothing_compiles_after_the_second_step(fields, tmp_path):
    def line(last: int) -> list[str]:
        steps = (f"stages[0].steps={STAGES[0]}", f"stages[1].steps={last}")
        overrides = [f"--config.{field}".format(problems=base[1]) for field in (*steps, *fields)]
        return flags(*base, *overrides)

    base, workdir = make_base(tmp_path), tmp_path / "run"
    finish(start_train(workdir, line(STAGES[1])), 1000)
    out = finish(start_train(workdir, line(STAGES[1] + MORE)), 1000)
    assert re.search(rf"^resumed at step {sum(STAGES)}$", out, re.MULTILINE)
    timing = [json.loads(text) for text in (workdir / "timing.jsonl").read_text().splitlines()]
    compiles = [step["compiles/step"] for step in timing]
    assert len(compiles) == sum(STAGES) + MORE
    starts = (0, STAGES[0], sum(STAGES))
    assert late_compiles(compiles, starts) == {}
    assert compiles[sum(STAGES)] > 0  # it does count, also where the programs come from a cache


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_stage_of_longer_responses_compiles_nothing(tmp_path):
    fields = (
        f"stages[0].steps={STAGES[0]}",
        f"stages[1].steps={STAGES[1]}",
        "stages[1].rope_factor=1.0",  # another scaling is another model: its sampler compiles
        "stages[1].max_response_tokens=28",
        "stages[1].temperature_rule=fixed",  # no probe in the entry, so a step would compile
        "stages[1].reset_optimizer=false",
    )
    line = flags(*make_base(tmp_path), *(f"--config.{field}" for field in fields))
    finish(start_train(tmp_path / "run", line), 1000)
    timing = [json.loads(text) for text in (tmp_path / "run/timing.jsonl").read_text().splitlines()]
    compiles = [step["compiles/step"] for step in timing]
    assert compiles[0] > 0
    assert compiles[WARM_AFTER:] == [0] * (sum(STAGES) - WARM_AFTER)
