"""One base model, and one recorded run of two stages, for the tests of this folder."""

from __future__ import annotations

import pytest

from tests.support.micro_run import make_base
from tests.support.wiring.lines import Micro, write_problems
from tests.support.wiring.spies import Recorded, run


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Micro:
    """A base model, twelve problems to train on, and three others to score."""
    directory = tmp_path_factory.mktemp("micro")
    base, problems = make_base(directory)
    held_out = write_problems(directory / "held_out.jsonl", ["1234", "12", "3"], first=20)
    return Micro(base, problems, held_out)


@pytest.fixture(scope="session")
def two_stages(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Two stages that differ in budget, rotary scaling and temperature, scored at every step."""
    workdir = tmp_path_factory.mktemp("two_stages") / "run"
    fields = {
        "stages[0].temperature": 1.1,
        "stages[1].temperature_rule": "match_diversity",
        "probe.cez_tolerance": 1.0,  # no temperature is a collapse: the diversity alone decides
        "stages[1].reset_optimizer": True,
        "stages[1].evaluate_temperature": 1.3,
        "evaluate.every_steps": 1,
        "evaluate.temperature": 0.7,
        "evaluate.top_k": 7,
        "evaluate.top_p": 0.9,
    }
    return Recorded(workdir, run("train", micro.line(fields), workdir))
