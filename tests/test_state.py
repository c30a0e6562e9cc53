"""How an open run ends in an error, and what it counts of a step."""

import json
import types
from typing import Any, NoReturn, cast

import numpy as np
import pytest
from etils import epath

from polaris_jax import loop
from polaris_jax.__main__ import main
from polaris_jax.batch.substitution import Substitution
from polaris_jax.commands.flags import parse
from polaris_jax.commands.run import run_command
from polaris_jax.config import ConfigError, build_config, default_config
from polaris_jax.mark import Mark
from polaris_jax.measure.policy import Policy
from polaris_jax.state import TrainingRun
from polaris_jax.system.failures import at_run_time
from polaris_jax.system.progress import Progress
from tests.micro_run import flags, make_base

MESH = ("--config.mesh.fsdp=8", "--config.batch.rows=8")  # all virtual devices


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Model and problems."""
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def run(tmp_path):
    config = build_config(default_config())
    return TrainingRun(config, epath.Path(tmp_path), progress=Progress(enabled=False))


ERRORS = [
    (ValueError("shapes (2, 3) and (4,) do not go together"), 1),
    (FileNotFoundError(2, "No such file or directory", "weights"), 1),
    (ConfigError("stages[1].max_response_tokens=9: too few"), 2),
    (KeyboardInterrupt(), 130),
]


@pytest.mark.parametrize(("error", "status"), ERRORS)
def test_what_fails_at_run_time_is_no_bad_input(error, status, capsys):
    def command() -> int:
        with at_run_time(lambda: "step 300"):
            raise error

    assert run_command(command) == status
    said = capsys.readouterr().err
    assert ("step 300: " in said) == (status == 1)
    assert "Traceback" not in said
    if status == 1:
        assert str(error) in said


def raises(*_: object, **__: object) -> NoReturn:
    raise ERRORS[0][0]


@pytest.mark.parametrize(
    ("command", "owner", "name", "where"),
    [
        ("train", loop, "visit", "step 0"),
        ("calibrate", Policy, "solve", "sampling"),
        ("probe", Policy, "solve", "sampling"),
        ("evaluate", Policy, "solve", "sampling"),
    ],
)
def test_every_command_says_so(monkeypatch, tmp_path, capsys, base, command, owner, name, where):
    monkeypatch.setattr(owner, name, raises)
    line = [*flags(*base, *MESH, f"--config.evaluate.problems={base[1]}")]
    assert main([command, *line, f"--workdir={tmp_path / 'run'}"]) == 1
    assert f"error: {where}: ValueError: {ERRORS[0][0]}" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["train", "skip", "none"])
def test_a_step_counts_what_it_did_with_its_batch(run, action):
    run.counts.update(rescued_groups=7, resampled_batches=3, steps_without_update=4)
    before = {"rescued_groups": 5, "resampled_batches": 3, "steps_without_update": 4}
    mark = cast(Mark, types.SimpleNamespace(counts=before))
    swapped = Substitution(np.arange(8), 3, 5, 2, action)
    metrics: dict[str, Any] = run.count_batch(swapped, since=mark)
    assert metrics == {
        "batch/rescued_groups": 2,
        "batch/resampled_batches": 0,
        "batch/steps_without_update": int(action != "train"),
        "batch/informative_groups": 3,
        "batch/substituted_groups": 5,
        "batch/donors_reused": 2,
    }
    assert run.counts["substituted_groups"] == 5
    assert run.counts["donors_reused"] == 2


def test_the_first_step_knows_the_lengths_that_calibration_measured(tmp_path, base):
    rows = [json.loads(line) for line in base[1].read_text().splitlines()]
    known = rows[: len(rows) // 2]
    for tokens, row in enumerate(known, 5):
        row["response_tokens"] = tokens
    problems = tmp_path / "measured.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = [*flags(base[0], problems, *MESH), f"--workdir={tmp_path / 'run'}"]
    command = parse("train", line, doc="", define=lambda _: None)
    with TrainingRun(command.config, command.workdir, progress=Progress(enabled=False)) as run:
        expected = run.lengths.expected([row["id"] for row in known], limit=100)
        unknown = run.lengths.expected([row["id"] for row in rows[len(known) :]], limit=100)
    assert expected == [float(row["response_tokens"]) for row in known]
    assert unknown is None
